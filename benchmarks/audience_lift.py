"""Do items with similar images or texts have users in common? Measure this before choosing a recommender with an item graph.

python benchmarks/audience_lift.py --shards DIR --features DIR

Prints the lift of each modality's nearest neighbours: common users of neighbours, divided by the number expected from the
popularity of both. Compare it with the lift of random pairs.
"""

import argparse
from pathlib import Path

import numpy as np
import scipy.sparse
import torch

from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import open_features
from ptmrec_dist.recommenders.neighbours import nearest_neighbours


def main() -> None:
    """Print one line per modality."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--knn", type=int, default=10)
    options = parser.parse_args()
    dataset = Dataset(options.shards)
    store = open_features(options.features, dataset.fingerprint, dataset.num_items)
    train = dataset.interactions("train")
    shape = (dataset.num_users, dataset.num_items)
    taken = scipy.sparse.csr_array((np.ones(len(train.users)), (train.users, train.items)), shape=shape)
    taken.data[:] = 1
    warm = np.unique(train.items)
    rng = np.random.default_rng(0)
    first, second = rng.choice(warm, (2, 100_000))
    print(f"{'random pairs':<16}{_lift(taken, first[first != second], second[first != second]):>8.3f}")
    for modality, table in store.tables.items():
        found = nearest_neighbours(torch.from_numpy(np.array(table[warm], dtype=np.float32)), options.knn)
        lift = _lift(taken, warm[found.nodes.numpy()], warm[found.neighbours.numpy()])
        print(f"{modality:<16}{lift:>8.3f}")


def _lift(taken: scipy.sparse.csr_array, first: np.ndarray, second: np.ndarray) -> float:
    columns = taken.tocsc()
    common = columns[:, first].multiply(columns[:, second]).sum()
    popularity = taken.sum(axis=0)
    return float(common / (popularity[first] * popularity[second] / taken.shape[0]).sum())


if __name__ == "__main__":
    main()
