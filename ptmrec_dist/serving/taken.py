"""What users took, in the folder of a registered model: what it was trained on, and all that its data knew.

A user who bought an item is not recommended it again, whichever part of the split the purchase is in, and the latest
purchases, which splits by time hold out, say most about the next one. Training interactions are kept apart: a recommender is
rebuilt from them, and versions are compared on what they were not trained on.

    seen.parquet     user_index, item_index: training
    known.parquet    the same of all parts; absent from versions that were registered without it

Both are in time order where the data have times.
"""

from pathlib import Path

import polars as pl

from ptmrec_dist.data.dataset import Dataset, Interactions
from ptmrec_dist.data.tables.parquet import read_parquet

_TRAINED, _KNOWN = "seen.parquet", "known.parquet"


def write_taken(folder: Path, dataset: Dataset) -> None:
    """Write both tables.

    Args:
        folder: Folder of a served model.
        dataset: The data set that it was trained on.
    """
    for name, taken in ((_TRAINED, dataset.interactions("train")), (_KNOWN, dataset.sequences(*dataset.parts))):
        pl.DataFrame({"user_index": taken.users, "item_index": taken.items}).write_parquet(folder / name)


def read_trained(folder: Path) -> Interactions:
    """Read the training interactions.

    Args:
        folder: Folder of a served model.

    Returns:
        User and item indices, int64 [E] each, in time order.
    """
    return _read(folder / _TRAINED)


def read_known(folder: Path) -> Interactions:
    """Read all interactions that the data knew, those of validation and test included.

    Args:
        folder: Folder of a served model.

    Returns:
        User and item indices, int64 [E] each, in time order; the training interactions alone of a version without the others.
    """
    path = folder / _KNOWN
    return _read(path) if path.is_file() else read_trained(folder)


def _read(path: Path) -> Interactions:
    table = read_parquet(path)
    return Interactions(table["user_index"].to_numpy(), table["item_index"].to_numpy())
