"""The states that enter the first tuned block of each tower, computed once for all items before training, in the run's folder.

They lie beside the checkpoints and go with them. A run that resumes finds them, if they are of the same items, encoder and
blocks; what a killed one left unfinished is written anew.
"""

import hashlib
import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ptmrec_dist.config import TunesEncoder
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.distributed import barrier, gather_rows
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.encoding import reader_of
from ptmrec_dist.encoders.frozen_prefix import FrozenPrefix, frozen_blocks
from ptmrec_dist.encoders.stored_states import StatesNotWritten, StatesWriter, StoredStates, complete_states
from ptmrec_dist.progress import Progress
from ptmrec_dist.training.batches import item_stream
from ptmrec_dist.training.session import Session

_ROWS = 256
_GIB = 2**30
_MOST_OF_THE_DISK = 0.5
_TEXTS = ["cup", "a photo of a red cup on a table"]


def store_frozen_states(config: TunesEncoder, session: Session, dataset: Dataset, encoder: Encoder | None) -> None:
    """Run the frozen blocks at the start of each tower once for all items, and let the encoder start from their states.

    Does nothing where no block is frozen, where `cache_gib` is 0, with CUDA graphs, which are of whole towers, and under
    ZeRO-3, whose ranks must run all modules alike. Items that do not fit are encoded by all blocks, as before.

    Collective: every rank must call this.

    Args:
        config: Settings.
        session: The run.
        dataset: Its data set.
        encoder: Its encoder, with what is tuned; None where all features stay frozen.

    Raises:
        Fault: More items could not be read than `max_damaged` allows.
    """
    if encoder is None or not config.cache_gib or config.cuda_graphs or config.zero.stage == 3:
        return
    found = frozen_prefixes(encoder)
    prefixes = {modality: prefix for modality, prefix in found.items() if prefix is not None}
    folder = session.run.folder / "checkpoints" / "frozen_states"
    keys = {modality: _key(config, dataset, encoder, prefix) for modality, prefix in prefixes.items()}
    stored = {name: StoredStates.matching(folder / name, key, dataset.num_items) for name, key in keys.items()}
    if not _on_all_ranks(None not in stored.values(), session):
        _write(config, session, dataset, encoder, prefixes, folder, keys)
        stored = {name: StoredStates.matching(folder / name, key, dataset.num_items) for name, key in keys.items()}
    for modality, prefix in prefixes.items():
        prefix.stored = stored[modality]
    encoder.prefixes = {modality: prefix for modality, prefix in prefixes.items() if prefix.stored is not None}
    if session.world.is_first:
        _report(found, dataset.num_items)


def frozen_prefixes(encoder: Encoder) -> dict[str, FrozenPrefix | None]:
    """Find the frozen blocks at the start of towers.

    Args:
        encoder: The encoder, with what is tuned.

    Returns:
        Modality to these blocks; None where the tower has some, but must be run whole. Towers without any are left out, and so
        are those with prompts, which enter before the blocks.
    """
    found: dict[str, FrozenPrefix | None] = {}
    for modality, tower in encoder.towers.items():
        blocks = 0 if modality in encoder.attached else frozen_blocks(tower)
        if blocks:
            prefix = FrozenPrefix(tower, blocks)
            examples = encoder.tokenize(_TEXTS) if modality == "text" else torch.cat([tower.example] * 2)
            device = next(iter(tower.parameters())).device
            found[modality] = prefix if prefix.is_exact(examples.to(device)) else None
    return found


def _key(config: TunesEncoder, dataset: Dataset, encoder: Encoder, prefix: FrozenPrefix) -> str:
    """Digest of all that the stored states depend on."""
    parts = [dataset.fingerprint, encoder.backbone.fingerprint, prefix.blocks, config.precision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _on_all_ranks(here: bool, session: Session) -> bool:
    return bool(gather_rows(torch.tensor([int(here)], device=session.world.device)).all())


def _write(
    config: TunesEncoder,
    session: Session,
    dataset: Dataset,
    encoder: Encoder,
    prefixes: dict[str, FrozenPrefix],
    folder: Path,
    keys: dict[str, str],
) -> None:
    """Write the states of all items, each rank those of its shards, as far as there is room."""
    world = session.world
    if world.is_first:
        shutil.rmtree(folder, ignore_errors=True)
        for modality in prefixes:
            (folder / modality).mkdir(parents=True)
    barrier()
    stream = item_stream(config, dataset, reader_of(encoder), world, _ROWS)
    written = True
    with torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        like = {name: next(prefix.rows(prefix.tower.example.to(world.device))) for name, prefix in prefixes.items()}
        try:
            _write_part(stream, prefixes, folder, session, min(config.cache_gib * _GIB, _free(folder)))
        except StatesNotWritten as error:
            print(f"frozen blocks: rank {world.rank} {error}")
            written = False
    session.heartbeat.between()
    written = _on_all_ranks(written, session)
    if world.is_first and written:
        for modality, key in keys.items():
            complete_states(folder / modality, key, world.size, like[modality])
    elif world.is_first:
        shutil.rmtree(folder, ignore_errors=True)  # checkpoints need the room
    barrier()


def _write_part(
    stream: ItemStream, prefixes: dict[str, FrozenPrefix], folder: Path, session: Session, room: float
) -> None:
    """Write the states of this rank's items until its part of `room` in bytes is used."""
    world = session.world
    own = int(stream.counts[stream.shards_of(0)[world.rank]].sum())
    room *= own / max(int(stream.counts.sum()), 1)
    with (
        ExitStack() as files,
        Progress(total=own, desc="frozen blocks", unit="item", disable=not world.is_first, leave=False) as bar,
    ):
        writers = [files.enter_context(StatesWriter(folder / name, world.rank)) for name in prefixes]
        for number, batch in enumerate(stream.epoch(0), start=1):
            session.heartbeat.at(number)
            moved = batch.to(world.device)
            inputs = {"image": moved.images, "text": moved.texts}
            rows = [prefix.rows(cast(Tensor, inputs[modality])) for modality, prefix in prefixes.items()]
            for item, *states in zip(batch.items.tolist(), *rows, strict=True):
                if room > 0:
                    room -= sum(writer.add(item, state) for writer, state in zip(writers, states, strict=True))
            bar.update(len(batch.items))
            if room <= 0:
                break
        for writer in writers:
            writer.complete()


def _free(folder: Path) -> float:
    return shutil.disk_usage(folder).free * _MOST_OF_THE_DISK


def _report(found: dict[str, FrozenPrefix | None], num_items: int) -> None:
    for modality, prefix in found.items():
        if prefix is None:
            reason = "its tuned blocks read more than the frozen ones give"
            print(f"frozen blocks: the {modality} tower runs whole, since {reason}")
        elif prefix.stored is None:
            print(f"frozen blocks: the {modality} tower runs whole, since its states could not be stored")
        else:
            stored, blocks = prefix.stored, f"{prefix.blocks} of {len(prefix.tower.blocks)}"
            few = "" if stored.num_items == num_items else "; the others run whole (--cache_gib)"
            print(
                f"frozen blocks: the first {blocks} of the {modality} tower have been run, once for each of "
                f"{stored.num_items} of {num_items} items: {stored.num_bytes / 2**20:,.1f} MiB{few}"
            )
