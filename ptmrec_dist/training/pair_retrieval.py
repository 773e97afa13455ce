"""How well an encoder finds the own text of held-out images, and the other way round, over all ranks."""

import numpy as np
import torch

from ptmrec_dist.config import ContrastiveConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.distributed import World, gather_rows
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.encoding import reader_of
from ptmrec_dist.evaluation.retrieval import own_pair_recall
from ptmrec_dist.progress import Progress
from ptmrec_dist.training.batches import item_stream, rows_per_rank
from ptmrec_dist.training.session import Session

_MOST_ITEMS = 1000


def held_out_pairs(config: ContrastiveConfig, dataset: Dataset, encoder: Encoder, world: World) -> ItemStream:
    """Stream the pairs of the cold validation items; of many, a sample with a fixed seed.

    Args:
        config: Settings.
        dataset: The packed data set.
        encoder: The encoder, for its preprocessing.
        world: This rank and its peers.

    Returns:
        The stream of this rank; without items where the split has no cold items.
    """
    items = dataset.cold_items("cold_validation")
    items = items[(dataset.has("image") & dataset.has("text"))[items]]
    if len(items) > _MOST_ITEMS:
        items = np.random.default_rng(0).choice(items, _MOST_ITEMS, replace=False)
    wanted = np.zeros(dataset.num_items, dtype=bool)
    wanted[items] = True
    return item_stream(
        config, dataset, reader_of(encoder), world, rows_per_rank(config.batch_size, world), wanted=wanted
    )


def own_pairs_found(encoder: Encoder, pairs: ItemStream, session: Session) -> dict[str, float]:
    """Compute the recall of own pairs among all held-out pairs.

    Collective: every rank must call this.

    Args:
        encoder: The encoder, in its current state, with a common space.
        pairs: Held-out pairs of this rank.
        session: The run.

    Returns:
        `image_to_text`, `text_to_image` and the number of `items`; empty without items.
    """
    if not pairs.counts.any():
        return {}
    images, texts = [], []
    total, quiet = int(pairs.counts[pairs.shards_of(0)[pairs.rank]].sum()), not session.world.is_first
    with torch.no_grad(), Progress(total=total, desc="held-out pairs", unit="item", disable=quiet, leave=False) as bar:
        for number, batch in enumerate(pairs.epoch(0), start=1):
            session.heartbeat.at(number)
            given = batch.to(session.world.device)
            features = encoder.encode(given.images, given.texts, items=given.items)
            images_BW, texts_BW, _ = encoder.backbone.contrasted(features)
            images.append(images_BW)
            texts.append(texts_BW)
            bar.update(len(batch.items))
        images_NW, texts_NW = gather_rows(torch.cat(images)), gather_rows(torch.cat(texts))
    session.heartbeat.between()
    return own_pair_recall(images_NW, texts_NW) | {"items": float(len(images_NW))}
