"""CPU seconds of `ptmrec features` beside the bare forward of the same model on the same inputs, in one process.

python benchmarks/features.py --shards SHARDS --encoder.text hf:FOLDER
python benchmarks/features.py --shards SHARDS --encoder.image timm:FOLDER

The bare forward gets batches that are decoded, tokenized and, for texts, sorted by length beforehand; only the model's calls
count. The command's time covers all that it does with the items: reading shards, decoding, tokenizing, the model, collecting
rows. One thread.
"""

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import jsonargparse
import torch
from torch import Tensor

from ptmrec_dist.config import EncoderConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.stream import ItemBatch, ItemStream
from ptmrec_dist.distributed import World
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.features import encode_all, reader_of
from ptmrec_dist.encoders.sources.loading import load_backbone


def main(shards: Path, encoder: EncoderConfig, batches: int = 4, batch_size: int = 256) -> None:
    """Measure both and print their ratio.

    Args:
        shards: Packed data set.
        encoder: Encoder of one modality.
        batches: Batches that are measured.
        batch_size: Items in a batch.
    """
    torch.set_num_threads(1)
    dataset = Dataset(shards)
    backbone = load_backbone(encoder)
    (modality,) = backbone.modalities
    model, world = Encoder(backbone, (modality,)), World(0, 1, torch.device("cpu"))
    stream = ItemStream(dataset, 0, 1, batch_size, reader_of(model))
    tower = model.towers[modality]
    inputs = [_sorted(batch, modality, tower.trimmed) for batch in islice(stream.epoch(0), batches)]
    stream.epoch = lambda epoch, skip=0, read=stream.epoch: islice(read(epoch, skip), batches)  # type: ignore[method-assign]
    with torch.no_grad():
        tower.encode(tower.example)
        bare = _cpu_seconds(lambda: [tower.encode(part) for parts in inputs for part in parts])
    whole = _cpu_seconds(lambda: encode_all(model, stream, dataset.num_items, world, sort_by_length=True))
    print(
        f"{batches * batch_size} items: features {whole:.1f} CPU s, bare forward {bare:.1f} CPU s, ratio {bare / whole:.0%}"
    )


def _sorted(batch: ItemBatch, modality: str, trimmed: Callable[[Tensor], Tensor]) -> list[Tensor]:
    if modality == "image":
        assert batch.images is not None
        return [batch.images]
    assert batch.texts is not None
    lengths = torch.tensor([trimmed(text[None]).shape[1] for text in batch.texts])
    return [trimmed(batch.texts[rows]) for rows in lengths.argsort(stable=True).split(64)]


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    jsonargparse.auto_cli(main, as_positional=False)
