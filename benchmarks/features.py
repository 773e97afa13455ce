"""CPU seconds of `ptmrec features` beside the bare forward of the same model by its own library, in one process of one thread.

python benchmarks/features.py --shards SHARDS --encoders '[clip-xs, "hf:minilm-l6", "timm:efficientnet-lite0", "vlmo:tiny"]'

The bare forward is the library's own call on prepared tensors: images decoded, resized and normalised; texts tokenized and, as
`features` does, sorted by length (a CLIP of open_clip takes whole contexts only). `features` reads tars, decodes, tokenizes,
sorts, runs the model, scales and collects rows; that of "prepared" leaves reading, decoding and tokenizing out, which loader
processes (`--workers`) do beside the model. The three are measured in turn, several times; the medians are printed.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import jsonargparse
import torch
import torch.nn.functional as F

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.stream import ItemBatch, ItemStream
from ptmrec_dist.distributed import World
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.encoding import encode_all, reader_of
from ptmrec_dist.encoders.lengths import groups_of_similar_length
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.encoders.sources.open_clip_towers import ImageTower, TextTower
from ptmrec_dist.encoders.sources.sentence_tower import PADDING, SentenceTower
from ptmrec_dist.encoders.sources.timm import TimmTower
from ptmrec_dist.encoders.sources.vlmo.towers import scaled


class Few(ItemStream):
    """A stream that ends early."""

    batches = 1

    def steps(self, epoch: int) -> int:
        """Count the steps of an epoch."""
        return min(self.batches, super().steps(epoch))


def main(shards: Path, encoders: list[str], batches: int = 1, batch_size: int = 256, repeats: int = 3) -> None:
    """Measure every tower of every encoder and print a table.

    Args:
        shards: Packed data set.
        encoders: As of `--encoder.model`, or `timm:` and `hf:` as of `--encoder.image` and `--encoder.text`.
        batches: Batches that are measured.
        batch_size: Items in a batch.
        repeats: Times that each is measured.
    """
    torch.set_num_threads(1)
    Few.batches = batches
    print("| encoder | reads | bare forward | features | ratio | of prepared inputs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in encoders:
        option = {"timm:": "image", "hf:": "text"}.get(name[: name.find(":") + 1], "model")
        backbone = load_backbone(EncoderConfig(**{option: name}))
        for modality in backbone.modalities:
            encoder = Encoder(backbone, (modality,))
            encoder.sort_by_length = True
            stream = Few(Dataset(shards), 0, 1, batch_size, reader_of(encoder))
            bare, features, reading = _measured(encoder, stream, repeats)
            shown = [name.rstrip("/").rpartition("/")[2], f"{modality}s", f"{bare:.2f} s", f"{features:.2f} s"]
            shown += [f"{bare / features:.0%}", f"{bare / (features - reading):.0%}"]
            print(f"| {' | '.join(shown)} |", flush=True)


def _measured(encoder: Encoder, stream: Few, repeats: int) -> tuple[float, float, float]:
    """Medians of the bare forward, of all that `features` does, and of its reading alone."""
    (tower,), num_items = encoder.towers.values(), len(stream.wanted)
    calls = [_library_call(tower, part) for batch in stream.epoch(0) for part in _parts(tower, batch)]
    kinds: list[Callable[[], object]] = [
        lambda: [call() for call in calls],
        lambda: encode_all(encoder, stream, num_items, World(0, 1, torch.device("cpu"))),
        lambda: list(stream.epoch(0)),
    ]
    with torch.no_grad():
        calls[0]()
        taken = [[_cpu_seconds(kind) for kind in kinds] for _ in range(repeats)]
    bare, features, reading = (median(seconds) for seconds in zip(*taken, strict=True))
    return bare, features, reading


def _parts(tower: Any, batch: ItemBatch) -> list[ItemBatch]:
    """What is encoded at once: texts of similar length."""
    if batch.texts is None:
        return [batch]
    groups = groups_of_similar_length(tower, batch.texts)
    return [ItemBatch(batch.items[rows], None, tower.trimmed(batch.texts[rows])) for rows in groups]


def _library_call(tower: Any, part: ItemBatch) -> Callable[[], object]:
    """What the tower's own library is called with."""
    images, ids = part.images, part.texts
    if isinstance(tower, ImageTower | TimmTower):
        pixels = tower.normalised(images)
        return lambda: tower.clip.encode_image(pixels) if isinstance(tower, ImageTower) else tower.model(pixels)
    if isinstance(tower, TextTower):
        whole = F.pad(ids, (0, tower.example.shape[1] - ids.shape[1]))
        return lambda: tower.clip.encode_text(whole)
    if isinstance(tower, SentenceTower):
        mask = ids != PADDING
        inputs = {"input_ids": ids.where(mask, 0), "attention_mask": mask.long()}
        return lambda: tower.model.transformer(**inputs)
    if images is not None:
        pixels = scaled(images)
        return lambda: tower.model.encode_image(pixels)
    return lambda: tower.model.encode_text(ids)


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
