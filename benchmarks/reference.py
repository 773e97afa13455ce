"""The models that stage 1 is measured beside: MMRec's from a checkout, PyG's LightGCN module, and `implicit`'s ALS.

MMRec is GPL: it is run from the folder of a checkout that the user names, never imported by the project or copied. What it
needs and this environment lacks (torch_scatter, lmdb, names that numpy and scipy dropped, a GPU) gets a stand-in here.
"""

import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.clock import seconds

MMREC = {
    "bpr": "BPR",
    "lightgcn": "LightGCN",
    "vbpr": "VBPR",
    "freedom": "FREEDOM",
    "mgcn": "MGCN",
    "smore": "SMORE",
    "mmgcn": "MMGCN",
    "lattice": "LATTICE",
    "slmrec": "SLMRec",
}
"""Our name of a recommender to MMRec's."""
TRAINS_TABLES = ("freedom", "mgcn", "smore", "lattice", "mmgcn", "slmrec")
"""Those that are measured with trained feature tables, too; MMRec always freezes those of the last two."""
# Where its files list several values, those of our defaults.
_SETTINGS = {
    "n_layers": 2,
    "n_ui_layers": 2,
    "reg_weight": 1e-4,
    "learning_rate": 1e-3,
    "dropout": 0.8,
    "cl_loss": 0.01,
}
_OWN_SETTINGS = {
    "SMORE": {"n_layers": 1, "n_ui_layers": 3, "image_knn_k": 10, "text_knn_k": 10, "dropout_rate": 0},
    "SLMRec": {"ssl_temp": 0.2, "ssl_alpha": 0.1, "reg": 1e-4},
}
_ONE_LAYER = ("MGCN", "LATTICE")  # layers over their item graphs


CPU = torch.device("cpu")


def timed_steps(steps: Iterator[Callable[[], Any]], limit: int, of: int, device: torch.device = CPU) -> float:
    """Estimate an epoch from its first steps: the first one may compute more, the others are alike.

    Args:
        steps: The steps of an epoch.
        limit: Steps that are measured, at least 2.
        of: Steps of an epoch.
        device: Where they run.

    Returns:
        Seconds of the first step and of as many median steps as follow it.
    """
    taken = []
    for step, _ in zip(steps, range(limit), strict=False):
        started = seconds(device)
        step()
        taken.append(seconds(device) - started)
    return taken[0] + median(taken[1:]) * (of - 1)


def timed_calls(call: Callable[[], Any], device: torch.device = CPU, count: int = 3) -> float:
    """Measure calls that follow each other.

    Args:
        call: What is measured.
        device: Where it runs.
        count: Number of calls.

    Returns:
        Seconds of the fastest: what else the machine does can only add to them.
    """
    taken = []
    for _ in range(count):
        started = seconds(device)
        call()
        taken.append(seconds(device) - started)
    return min(taken)


def mmrec(
    checkout: Path, name: str, interactions: Path, features: Path, steps: int, train_tables: bool
) -> dict[str, Any]:
    """Measure a model of MMRec by its own trainer's steps and its own evaluation.

    Args:
        checkout: Folder of MMRec.
        name: Our name of the model.
        interactions: The .inter file.
        features: Folder of our features, whose tables it reads.
        steps: Steps that are measured.
        train_tables: Let it train the feature tables, which is the default of most of its models.

    Returns:
        CPU seconds of an epoch and of an evaluation of the validation part.
    """
    folder = features.parent / f"mmrec-{name}"
    _lay_out(folder, interactions, features)
    os.chdir(checkout / "src")
    sys.path.insert(0, str(checkout / "src"))
    _stand_in()
    model, trainer, train_data, valid_data = _build(MMREC[name], folder, train_tables)
    total = len(train_data)
    model.pre_epoch_processing()

    def all_steps() -> Iterator[Callable[[], Any]]:
        for batch in train_data:
            yield lambda batch=batch: trainer._train_epoch([batch], 0)

    epoch = timed_steps(_with_loading(all_steps()), steps, total)
    return {"epoch": epoch, "evaluation": timed_calls(lambda: trainer.evaluate(valid_data))}


def _with_loading(steps: Iterator[Callable[[], Any]]) -> Iterator[Callable[[], Any]]:
    """Steps that include the loading of their batch, for MMRec samples negatives there."""
    while True:
        yield lambda: next(steps)()


def _lay_out(folder: Path, interactions: Path, features: Path) -> None:
    data = folder / "baby"
    data.mkdir(parents=True, exist_ok=True)
    for target, source in {
        "baby.inter": interactions.resolve(),
        "image_feat.npy": features / "image.npy",
        "text_feat.npy": features / "text.npy",
    }.items():
        if not (data / target).exists():
            (data / target).symlink_to(source)


def _stand_in() -> None:
    from scipy.sparse import dok_matrix

    np.float = float  # type: ignore[attr-defined]
    dok_matrix._update = lambda self, entries: self._dict.update(entries)
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment]
    scatter = types.ModuleType("torch_scatter")

    def scatter_add(
        source: torch.Tensor, index: torch.Tensor, dim: int = 0, dim_size: int | None = None
    ) -> torch.Tensor:
        size = int(index.max()) + 1 if dim_size is None else dim_size
        return source.new_zeros(size).index_add_(dim, index, source)

    scatter.scatter_add = scatter.scatter = scatter_add  # type: ignore[attr-defined]
    sys.modules.setdefault("torch_scatter", scatter)
    sys.modules.setdefault("lmdb", types.ModuleType("lmdb"))


def _build(name: str, folder: Path, train_tables: bool) -> tuple[Any, Any, Any, Any]:
    """A model of MMRec, its trainer, and its loaders of training and validation."""
    from utils.configurator import Config  # type: ignore[import-not-found]
    from utils.dataloader import EvalDataLoader, TrainDataLoader  # type: ignore[import-not-found]
    from utils.dataset import RecDataset  # type: ignore[import-not-found]
    from utils.utils import get_model, get_trainer, init_seed  # type: ignore[import-not-found]

    config = Config(name, "baby", {"gpu_id": 0, "use_gpu": False, "data_path": f"{folder}/", "seed": 999})
    layers = {"n_layers": 1} if name in _ONE_LAYER else {}
    for key, value in (_SETTINGS | layers | _OWN_SETTINGS.get(name, {})).items():
        config[key] = value
    init_seed(config["seed"])
    train, valid, _ = RecDataset(config).split()
    str(train), str(valid)  # which counts their interactions
    train_data = TrainDataLoader(config, train, batch_size=config["train_batch_size"], shuffle=True)
    valid_data = EvalDataLoader(config, valid, additional_dataset=train, batch_size=config["eval_batch_size"])
    train_data.pretrain_setup()
    model = get_model(name)(config, train_data)
    _train_tables(model, train_tables)
    model.train()
    return model, get_trainer()(config, model), train_data, valid_data


def _train_tables(model: torch.nn.Module, trained: bool) -> None:
    """Let the optimizer have the feature tables, or not; some models hold them as weights, others as constants."""
    for weights, constant in (("image_embedding", "v_feat"), ("text_embedding", "t_feat")):
        if hasattr(model, weights):
            getattr(model, weights).weight.requires_grad_(trained)
        elif trained:
            setattr(model, constant, torch.nn.Parameter(getattr(model, constant)))


def pyg_lightgcn(folder: Path, steps: int) -> dict[str, Any]:
    """Steps of PyG's LightGCN module as in its documentation: width 64, 2 layers, 2,048 interactions per step.

    Args:
        folder: Folder with our packed data set.
        steps: Steps that are measured.

    Returns:
        CPU seconds of an epoch.
    """
    from torch_geometric.nn.models import LightGCN

    from ptmrec_dist.data.dataset import Dataset

    dataset = Dataset(folder / "shards")
    train = dataset.interactions("train")
    users, items = torch.tensor(train.users), torch.tensor(train.items) + dataset.num_users
    edges = torch.cat([torch.stack([users, items]), torch.stack([items, users])], dim=1)
    model = LightGCN(dataset.num_users + dataset.num_items, 64, 2)
    optimizer = torch.optim.Adam(model.parameters())

    def step(rows: torch.Tensor) -> None:
        negatives = torch.randint(dataset.num_users, dataset.num_users + dataset.num_items, (len(rows),))
        pairs = torch.stack([users[rows].repeat(2), torch.cat([items[rows], negatives])])
        liked, other = model(edges, pairs).chunk(2)
        loss = model.recommendation_loss(liked, other, node_id=pairs.unique())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    batches = torch.randperm(len(users)).split(2048)
    return {"epoch": timed_steps(((lambda rows=rows: step(rows)) for rows in batches), steps, len(batches))}


def implicit_als(folder: Path) -> dict[str, Any]:
    """`implicit`'s ALS with 64 factors: complete training, and lists of 20 for all users.

    Args:
        folder: Folder with our packed data set.

    Returns:
        CPU seconds of training and of the lists; empty if it is not installed.
    """
    try:
        from implicit.als import AlternatingLeastSquares
    except ImportError:
        return {}
    from scipy.sparse import csr_matrix

    from ptmrec_dist.data.dataset import Dataset

    dataset = Dataset(folder / "shards")
    train = dataset.interactions("train")
    seen = csr_matrix((np.ones(len(train.users)), (train.users, train.items)), (dataset.num_users, dataset.num_items))
    model = AlternatingLeastSquares(64, num_threads=1)
    started = seconds(CPU)
    model.fit(seen, show_progress=False)
    trained = seconds(CPU)
    model.recommend(np.arange(dataset.num_users), seen, 20)
    return {"epoch": trained - started, "evaluation": seconds(CPU) - trained}
