"""Cost of serving: lists for all users at once, single requests over HTTP, and FAISS compared with the exact search.

    python -m benchmarks.serving                          # 19,445 users x 7,050 items, 2,000 requests, 1M items
    python -m benchmarks.serving --parts batch,http
    python -m benchmarks.serving --parts index --items 300000

Vectors are synthetic, of width 64: items in clusters around 500 centres, as trained ones are, users near one of these centres,
and varying norms. `batch` opens a model's folder, ranks all unseen items of all users, and writes the file. `http` starts
`ptmrec serve` on it and puts it under load (load.py), each request for one user or one visitor with 20 items. `index` compares
FAISS with the exact search on the same machine in the same run.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.load import put_under_load
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.distributed import World
from ptmrec_dist.distributed.tensor_file import save_tensors
from ptmrec_dist.registry.registering import save_pyfunc
from ptmrec_dist.serving import ServedModel
from ptmrec_dist.serving.batch import write_lists
from ptmrec_dist.serving.digests import write_digests
from ptmrec_dist.serving.fold_in import fit_fold_in
from ptmrec_dist.serving.index import ExactIndex, FaissIndex, Index, write_faiss
from ptmrec_dist.serving.params import Params
from tests.ranks import free_port
from tests.stores import running

WIDTH, CENTRES, TAKEN, K = 64, 500, 6, 20


def main() -> None:
    """Print the measurements, one JSON object for each of `--parts`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="batch,http,index")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--items", type=int, default=1_000_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    selected = options.parts.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if {"batch", "http"} & set(selected):
            write_model(folder / "served", num_users=19_445, num_items=7_050)
        if "batch" in selected:
            print(json.dumps({"batch": measure_batch(folder)}), flush=True)
        if "http" in selected:
            print(
                json.dumps({"http": measure_http(folder, options.requests, options.clients, options.workers)}),
                flush=True,
            )
        if "index" in selected:
            print(json.dumps({"index": measure_index(folder, options.items)}), flush=True)


def random_vectors(num_users: int, num_items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of users [U, WIDTH] and items [I, WIDTH]."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CENTRES, WIDTH, generator=generator)

    def near(rows: int, spread: float) -> torch.Tensor:
        kinds = torch.randint(CENTRES, (rows,), generator=generator)
        return centres[kinds] + spread * torch.randn(rows, WIDTH, generator=generator)

    norms = torch.empty(num_items, 1).uniform_(0.5, 1.5, generator=generator)
    return near(num_users, 1.0), near(num_items, 0.7) * norms


def write_model(folder: Path, num_users: int, num_items: int) -> None:
    """Write an ID-only model of random vectors in the format of registered models."""
    folder.mkdir()
    users, items = random_vectors(num_users, num_items)
    rng = np.random.default_rng(0)
    train = Interactions(np.arange(num_users).repeat(TAKEN), rng.integers(0, num_items, num_users * TAKEN))
    fitted = fit_fold_in(users, items, train)
    fold_in = {"centre": fitted.centre_D, "weight": fitted.weight_DT, "bias": fitted.bias_T}
    tables = {"users": users, "items": items} | {f"fold_in.{name}": value for name, value in fold_in.items()}
    save_tensors(folder / "tables.safetensors", tables)
    pl.DataFrame({"user_id": [f"u{user}" for user in range(num_users)]}).write_parquet(folder / "users.parquet")
    names = [f"i{item}" for item in range(num_items)]
    described = {"item_id": names, "title": names, "warm": np.ones(num_items, bool)}
    pl.DataFrame(described).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_index": train.users, "item_index": train.items}).write_parquet(folder / "seen.parquet")
    (folder / "model.json").write_text(json.dumps({"modalities": [], "index": "exact", "lineage": {}}))
    write_digests(folder)


def measure_batch(folder: Path) -> dict[str, float]:
    """Seconds to rank all users, and to rank them and write the file; best and all of five."""
    model = ServedModel(folder / "served")
    everyone = model.users.known(np.arange(len(model.users.user_ids)))
    world = World(0, 1, torch.device("cpu"))
    ranking = [seconds(lambda: model.rank(everyone, Params(top_k=K))) for _ in range(5)]
    writing = [seconds(lambda: write_lists(model, folder / "recs.parquet", world, Params(top_k=K))) for _ in range(5)]
    return {
        "users": len(model.users.user_ids),
        "items": len(model.item_ids),
        "rank_s": min(ranking),
        "rank_median_s": statistics.median(ranking),
        "rank_and_write_s": min(writing),
        "rank_and_write_median_s": statistics.median(writing),
    }


def measure_http(folder: Path, requests: int, clients: int, workers: int) -> dict[str, dict[str, float]]:
    """Load test of `ptmrec serve`: lists of users, and of visitors with 20 items."""
    save_pyfunc(folder / "served", folder / "package", "u1")
    port, rng = free_port(), np.random.default_rng(0)
    url = f"http://127.0.0.1:{port}"
    command = [
        "ptmrec_dist",
        "serve",
        "--model",
        str(folder / "package"),
        "--port",
        str(port),
        "--workers",
        str(workers),
    ]
    users, histories = rng.integers(0, 19_445, requests), rng.integers(0, 7_050, (requests, 20))
    rows = {
        "user": lambda number: {"user_id": f"u{users[number]}"},
        "visitor": lambda number: {"history": [f"i{item}" for item in histories[number]]},
    }
    with running(command, f"{url}/ping", folder / "serve.log"):
        return {kind: put_under_load(url, row, clients, requests, K).summary() for kind, row in rows.items()}


def measure_index(folder: Path, num_items: int) -> dict[str, float]:
    """Recall and speed of FAISS against the exact search: 200 users at once, and 50 one by one."""
    users, items = random_vectors(200, num_items)
    built = seconds(lambda: write_faiss(folder / "index.faiss", items))
    exact = ExactIndex(items, np.arange(num_items))
    faiss = FaissIndex(folder / "index.faiss", items, np.arange(num_items))
    nothing = Interactions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    found = {name: index.search(users, nothing, K)[0].tolist() for name, index in (("exact", exact), ("faiss", faiss))}
    recalls = [len(set(ours) & set(theirs)) / K for ours, theirs in zip(found["faiss"], found["exact"])]
    times = {name: time_searches(index, users) for name, index in (("exact", exact), ("faiss", faiss))}
    return {
        "items": num_items,
        "recall_of_exact_top_20": statistics.mean(recalls),
        "build_s": built,
        "exact_200_users_s": times["exact"][0],
        "faiss_200_users_s": times["faiss"][0],
        "exact_one_user_ms": 1000 * times["exact"][1],
        "faiss_one_user_ms": 1000 * times["faiss"][1],
        "speedup_200_users": times["exact"][0] / times["faiss"][0],
        "speedup_one_user": times["exact"][1] / times["faiss"][1],
    }


def time_searches(index: Index, users: torch.Tensor) -> tuple[float, float]:
    """Median seconds for all users at once, and for one."""
    nothing = Interactions(np.zeros(0, np.int64), np.zeros(0, np.int64))
    together = [seconds(lambda: index.search(users, nothing, K)) for _ in range(3)]
    alone = [seconds(lambda row=row: index.search(users[row : row + 1], nothing, K)) for row in range(50)]
    return statistics.median(together), statistics.median(alone)


def seconds(work) -> float:  # type: ignore[no-untyped-def]
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
