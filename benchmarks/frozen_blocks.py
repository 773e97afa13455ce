"""CPU seconds of a training step and of a refresh, with all blocks run and from stored states of the frozen ones, in pairs.

python -m benchmarks.frozen_blocks --encoder.text hf:FOLDER --items movies-small/items.csv            # last_n 2, 256 texts
python -m benchmarks.frozen_blocks --encoder.text hf:FOLDER --items movies-small/items.csv --n 1 --batch 64 --pairs 5

A step encodes a batch of texts, forward and backward through the tuned blocks; a refresh encodes them alone. Both forms see
the same batches, one right after the other, in an order that alternates; printed are medians, and the median of the ratios.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from torch import Tensor

from ptmrec_dist.config import EncoderConfig, LastNConfig
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import load_backbone
from ptmrec_dist.encoders.stored_states import StatesWriter, StoredStates, complete_states
from ptmrec_dist.training.frozen_states import frozen_prefixes


def main() -> None:
    """Print a line for a step and one for a refresh."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder.text", dest="encoder", required=True)
    parser.add_argument(
        "--items", type=Path, required=True, help="a table with a column `text`, `title` or `description`"
    )
    parser.add_argument("--n", type=int, default=2, help="tuned blocks")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=4, help="batches, each in both forms")
    options = parser.parse_args()
    encoder = Encoder(load_backbone(EncoderConfig(text=options.encoder)), ("text",))
    encoder.tune("last_n", LastNConfig(n=options.n), torch.Generator())
    encoder.sort_by_length = True
    batches = [encoder.tokenize(texts) for texts in _texts(options.items, options.batch, options.pairs)]
    with tempfile.TemporaryDirectory() as folder:
        seconds = _store(encoder, batches, Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        count = options.batch * options.pairs
        print(f"stored states of {count} texts: {size / count / 1024:.0f} KiB a text, {seconds:.2f} CPU s, once")
        for name, run in (("step", _step), ("refresh", _refresh)):
            _compare(name, encoder, batches, run)


def _texts(items: Path, batch: int, pairs: int) -> list[list[str]]:
    table = pl.read_csv(items, infer_schema=False)
    column = next(name for name in ("text", "description", "plot", "title") if name in table.columns)
    texts = table[column].fill_null("").to_list()[: batch * pairs]
    return [texts[start : start + batch] for start in range(0, batch * pairs, batch)]


def _store(encoder: Encoder, batches: list[Tensor], folder: Path) -> float:
    prefix = frozen_prefixes(encoder)["text"]
    assert prefix is not None
    begun, writer, item = time.process_time(), StatesWriter(folder, 0), 0
    for ids in batches:
        for states in prefix.rows(ids):
            writer.add(item, states)
            item += 1
    writer.close()
    complete_states(folder, "", 1, states)
    prefix.stored = StoredStates.matching(folder, "", item)
    encoder.prefixes["text"] = prefix
    return time.process_time() - begun


def _step(encoder: Encoder, ids: Tensor, items: Tensor | None) -> Tensor:
    features: Tensor = encoder.encode(None, ids, items=items)["text"]
    features.square().sum(dim=0)[0].backward()
    encoder.zero_grad()
    return features.detach()


@torch.no_grad()
def _refresh(encoder: Encoder, ids: Tensor, items: Tensor | None) -> Tensor:
    features: Tensor = encoder.encode(None, ids, items=items)["text"]
    return features


def _compare(name: str, encoder: Encoder, batches: list[Tensor], run: Callable[..., Tensor]) -> None:
    whole, stored, gap = [], [], 0.0
    for number, ids in enumerate(batches):
        items = torch.arange(number * len(ids), (number + 1) * len(ids))
        found = {}
        for form in (None, items) if number % 2 else (items, None):
            begun = time.process_time()
            found[form is None] = run(encoder, ids, form)
            (whole if form is None else stored).append(time.process_time() - begun)
        gap = max(gap, float((found[True] - found[False]).abs().max()))
    ratio = statistics.median(one / other for one, other in zip(whole, stored, strict=True))
    print(
        f"{name:<8} all blocks {statistics.median(whole):.2f} CPU s, from stored states {statistics.median(stored):.2f} CPU s: "
        f"{ratio:.2f} times as fast; features differ by {gap:.0e} at most"
    )


if __name__ == "__main__":
    main()
