"""Users made from histories: against a slow reference, and on users whom a real model was not trained on."""

import numpy as np
import polars as pl
import torch

from ptmrec_dist.config import PackConfig, Stage1Config, recommender_config
from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.evaluation.ranking import metrics_of, rank_positives
from ptmrec_dist.evaluation.scoring import table_scorer
from ptmrec_dist.serving.fold_in import PRIOR, FoldIn, fit_fold_in
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.stage1 import train_stage1
from tests.conftest import UNTRACKED
from tests.memory import largest_tensor
from tests.vectors import all_vectors


def test_map_that_users_follow_is_recovered_and_histories_are_looked_at_one_by_one():
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(50, 6, generator=generator)
    pairs = np.unique(np.random.default_rng(0).integers(0, (400, 50), (6000, 2)), axis=0)
    train = Interactions(pairs[:, 0], pairs[:, 1])
    centre = items[torch.from_numpy(train.items)].mean(dim=0)
    weight, bias = torch.randn(6, 4, generator=generator), torch.randn(4, generator=generator)

    def user(history: list[int]) -> torch.Tensor:
        return (
            sum((items[item] - centre for item in set(history)), torch.zeros(6)) / (len(set(history)) + PRIOR) @ weight
            + bias
        )

    users = torch.stack([user(train.items[train.users == row].tolist()) for row in range(400)])
    fold_in = fit_fold_in(users, items, train)
    histories = [[3, 4, 9], [], [7], [7, 7]]
    rows = Interactions(np.array([0, 0, 0, 2, 3, 3]), np.array([item for history in histories for item in history]))
    expected = torch.stack([user(history) for history in histories])
    torch.testing.assert_close(fold_in(items, rows, 4), expected, rtol=0.1, atol=0.05)
    torch.testing.assert_close(fold_in(items, rows, 4)[3], fold_in(items, rows, 4)[2])


def test_histories_give_what_a_loop_over_their_items_gives_to_the_sixth_digit():
    rng, items = np.random.default_rng(0), torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 3
    histories = Interactions(rng.choice([0, 1, 4, 6], 400), rng.integers(0, 50, 400))
    fold_in = FoldIn(torch.randn(6), torch.eye(6), torch.zeros(6))
    expected = torch.zeros(8, 6)
    for row in range(8):
        distinct = set(histories.items[histories.users == row].tolist())
        for item in distinct:
            expected[row] += (items[item] - fold_in.centre_D) / (len(distinct) + PRIOR)
    torch.testing.assert_close(fold_in(items, histories, 8), expected, rtol=1e-6, atol=1e-5)
    nothing = Interactions(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert fold_in(items, nothing, 2).tolist() == [[0] * 6] * 2


def test_learning_the_map_holds_no_vector_for_each_interaction():
    rng, users, items = np.random.default_rng(0), torch.randn(50, 64), torch.randn(2000, 64)
    train = Interactions(rng.integers(0, 50, 40_000), rng.integers(0, 2000, 40_000))
    torch.testing.assert_close(
        fit_fold_in(users, items, train).centre_D,
        items[torch.from_numpy(train.items)].mean(dim=0),
        rtol=1e-5,
        atol=1e-6,
    )
    assert largest_tensor(lambda: fit_fold_in(users, items, train)) <= items.nbytes < 16 * 40_000


def test_unseen_users_get_better_lists_than_the_most_popular_items(shared_data, tmp_path):
    log = pl.read_csv(shared_data("movies-small") / "interactions.csv", infer_schema=False).select("user_id", "item_id")
    users = log["user_id"].unique().sort()
    unseen = log.filter(pl.col("user_id").is_in(users.gather_every(5).implode()))
    log.join(unseen, on="user_id", how="anti").write_csv(tmp_path / "log.csv")
    pack(PackConfig(interactions=tmp_path / "log.csv", out=tmp_path / "shards", split="random", core=0))
    common = {
        "shards": tmp_path / "shards",
        "tracking": UNTRACKED,
        "device": "cpu",
        "model": recommender_config("bpr", dim=32),
    }
    train_stage1(Stage1Config(out=tmp_path / "run", recommender="bpr", epochs=12, lr=3e-3, **common))
    run = load_run(tmp_path / "run")
    histories, taken = halves(unseen, run.dataset.item_ids)
    user_vectors, item_vectors = (
        table.detach() for table in all_vectors(run.recommender.eval(), {}, run.dataset.num_users)
    )
    train = run.dataset.interactions("train")
    number = int(histories.users.max()) + 1
    visitors = fit_fold_in(user_vectors, item_vectors, train)(item_vectors, histories, number)
    known, wanted = (Histories(part, number, len(item_vectors)) for part in (histories, taken))
    ours = mean_metrics(visitors, item_vectors, wanted, known)
    popularity = torch.from_numpy(np.bincount(train.items, minlength=len(item_vectors))).float()[:, None]
    popular = mean_metrics(torch.ones(number, 1), popularity, wanted, known)
    assert ours["recall@20"] > 1.1 * popular["recall@20"]
    assert ours["ndcg@20"] > popular["ndcg@20"]


def mean_metrics(users: torch.Tensor, items: torch.Tensor, wanted: Histories, known: Histories) -> dict[str, float]:
    """Metrics, averaged over the users."""
    found = metrics_of(rank_positives(table_scorer(users, items), wanted, known))
    return {name: float(values.mean()) for name, values in found.values.items()}


def halves(log: pl.DataFrame, item_ids: list[str]) -> tuple[Interactions, Interactions]:
    """A random half of the interactions of unseen users as their histories, and the other half."""
    known = pl.DataFrame({"item_id": item_ids}).with_row_index("item")
    users = log.select(pl.col("user_id").unique().sort()).with_row_index("user")
    pairs = log.join(known, on="item_id").join(users, on="user_id").sort("user", "item")
    is_history = np.random.default_rng(0).random(len(pairs)) < 0.5
    columns = [pairs[name].cast(pl.Int64).to_numpy() for name in ("user", "item")]
    return Interactions(*(column[is_history] for column in columns)), Interactions(
        *(column[~is_history] for column in columns)
    )
