import math

import numpy as np
import pytest
import torch

from ptmrec_dist.data.dataset import Interactions
from ptmrec_dist.data.histories import Histories
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation import scoring
from ptmrec_dist.evaluation.ranking import UserMetrics, metrics_of, rank_positives
from ptmrec_dist.evaluation.scoring import NO_ITEM, Scorer, table_scorer, top_items
from tests.memory import largest_tensor

USERS, ITEMS = 23, 31


def pairs(seed: int, count: int, items: range = range(ITEMS)) -> Histories:
    rng = np.random.default_rng(seed)
    # The last three users have nothing.
    return histories(rng.integers(0, USERS - 3, count), rng.choice(np.array(items), count))


def histories(users: np.ndarray, items: np.ndarray) -> Histories:
    return Histories(Interactions(users, items), USERS, ITEMS)


def tables(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(USERS, 4, generator=generator), torch.randn(ITEMS, 4, generator=generator)


def ranked_metrics(
    users: torch.Tensor,
    items: torch.Tensor,
    positives: Histories,
    seen: Histories | None,
    cutoffs: tuple[int, ...] = (10, 20),
    candidates: np.ndarray | None = None,
) -> UserMetrics:
    scorer = table_scorer(users, items)
    return metrics_of(rank_positives(scorer, positives, seen, max(cutoffs), candidates), cutoffs)


def brute_force_top(
    scores: np.ndarray, user: int, seen: Histories | None, candidates: list[int] | None = None
) -> list[int]:
    hidden = set() if seen is None else set(seen.items[seen.users == user].tolist())
    open_items = [item for item in candidates or range(ITEMS) if item not in hidden]
    return sorted(open_items, key=lambda item: (-scores[user, item], item))


def brute_force_metrics(
    users: torch.Tensor,
    items: torch.Tensor,
    positives: Histories,
    seen: Histories | None,
    cutoffs: tuple[int, ...],
    candidates: list[int] | None = None,
) -> dict[str, dict[int, float]]:
    scores = (users @ items.T).numpy()
    values: dict[str, dict[int, float]] = {
        f"{name}@{k}": {} for k in cutoffs for name in ("recall", "ndcg", "hr", "mrr", "precision", "map")
    }
    for user in range(USERS):
        wanted = set(positives.items[positives.users == user].tolist())
        if not wanted:
            continue
        ranked = brute_force_top(scores, user, seen, candidates)
        for k in cutoffs:
            hits = [rank for rank, item in enumerate(ranked[:k], start=1) if item in wanted]
            best = sum(1 / math.log2(rank + 1) for rank in range(1, min(len(wanted), k) + 1))
            values[f"recall@{k}"][user] = len(hits) / len(wanted)
            values[f"ndcg@{k}"][user] = sum(1 / math.log2(rank + 1) for rank in hits) / best
            values[f"hr@{k}"][user] = float(bool(hits))
            values[f"mrr@{k}"][user] = 1 / hits[0] if hits else 0.0
            values[f"precision@{k}"][user] = len(hits) / k
            precisions = [sum(item in wanted for item in ranked[:rank]) / rank for rank in hits]
            values[f"map@{k}"][user] = sum(precisions) / min(k, len(wanted))
    return values


@pytest.mark.parametrize("block", [1, 100, 2**21])
@pytest.mark.parametrize("with_seen", [False, True])
def test_metrics_of_every_user_equal_brute_force(monkeypatch: pytest.MonkeyPatch, block: int, with_seen: bool) -> None:
    monkeypatch.setitem(scoring._BLOCK_SCORES, "cpu", block)
    monkeypatch.setattr(scoring, "_ALIGNED", 1)
    users, items = tables()
    positives, seen = pairs(1, 70), pairs(2, 90) if with_seen else None
    expected = brute_force_metrics(users, items, positives, seen, (1, 3, 10))
    got = ranked_metrics(users, items, positives, seen, (1, 3, 10))
    assert got.values.keys() == expected.keys()
    for name, values in expected.items():
        assert got.users.tolist() == list(values)
        np.testing.assert_allclose(got.values[name], list(values.values()), rtol=1e-12)


@pytest.mark.parametrize("levels", [None, 40])
def test_the_first_of_many_items_equal_a_full_sort_also_among_equal_scores(levels: int | None) -> None:
    generator = torch.Generator().manual_seed(3)
    # Widths of one make scores that are easy to tie: whole numbers, of which there are `levels`.
    users = torch.ones(9, 1)
    items = torch.randn(997, 1, generator=generator)
    if levels:
        items = torch.randint(levels, (997, 1), generator=generator).float()
    got, scores = top_items(table_scorer(users, items), np.arange(9), None, 20)
    expected = sorted(range(997), key=lambda item: (-items[item, 0].item(), item))[:20]
    assert got.tolist() == [expected] * 9
    torch.testing.assert_close(scores, items[expected, 0].expand(9, 20))


def test_candidates_restrict_the_ranking() -> None:
    users, items = tables()
    candidates = [30, 4, 7, 8, 21, 22]
    positives = pairs(1, 40, range(7, 9))
    expected = brute_force_metrics(users, items, positives, pairs(2, 90), (1, 3), candidates)
    got = ranked_metrics(users, items, positives, pairs(2, 90), (1, 3), np.array(candidates))
    for name, values in expected.items():
        np.testing.assert_allclose(got.values[name], list(values.values()), rtol=1e-12)


def test_ranges_of_users_are_ranked_as_in_the_whole() -> None:
    scorer, positives, seen = table_scorer(*tables()), pairs(1, 40), pairs(2, 90)
    whole = rank_positives(scorer, positives, seen)
    ranges = [rank_positives(scorer, positives, seen, user_range=bounds) for bounds in [(0, 8), (8, 9), (9, 23)]]
    for column in ("users", "items", "ranks"):
        np.testing.assert_array_equal(np.concatenate([getattr(one, column) for one in ranges]), getattr(whole, column))
    assert len(rank_positives(scorer, positives, seen, user_range=(20, 23)).ranks) == 0


@pytest.mark.parametrize("block", [1, 100, 2**21])
def test_vectors_of_users_are_computed_some_at_a_time_and_scored_by_the_models_own_score(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setitem(scoring._BLOCK_SCORES, "cpu", block)
    monkeypatch.setattr(scoring, "_ALIGNED", 1)
    monkeypatch.setattr(scoring, "_BLOCK_USERS", 6)
    users, items = tables()
    asked: list[int] = []

    def vectors(rows: np.ndarray) -> torch.Tensor:
        asked.extend(rows.tolist())
        assert len(rows) <= max(6, block // ITEMS)
        return users[torch.from_numpy(rows)]

    def distance(users_BD: torch.Tensor, items_CD: torch.Tensor) -> torch.Tensor:
        return -torch.cdist(users_BD, items_CD)

    got, _ = top_items(Scorer(vectors, items, distance), np.arange(USERS), pairs(2, 90), 7)
    scores = np.array([[-float((user - item).norm()) for item in items] for user in users])
    assert got.tolist() == [brute_force_top(scores, user, pairs(2, 90))[:7] for user in range(USERS)]
    assert asked == list(range(USERS))


@pytest.mark.parametrize("levels", [2, 6])
def test_equal_scores_are_ranked_by_item_index(levels: int) -> None:
    rng = np.random.default_rng(0)
    users = torch.tensor(rng.integers(0, levels, (USERS, 3)), dtype=torch.float32)
    items = torch.tensor(rng.integers(0, levels, (ITEMS, 3)), dtype=torch.float32)
    seen = pairs(2, 90)
    got, _ = top_items(table_scorer(users, items), np.arange(USERS), seen, 7)
    scores = (users @ items.T).numpy()
    assert got.tolist() == [brute_force_top(scores, user, seen)[:7] for user in range(USERS)]


@pytest.mark.parametrize("block", [1, 100, 2**21])
def test_metrics_among_equal_scores_equal_brute_force(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setitem(scoring._BLOCK_SCORES, "cpu", block)
    monkeypatch.setattr(scoring, "_ALIGNED", 1)
    rng = np.random.default_rng(0)
    for levels in (1, 3):
        users = torch.tensor(rng.integers(0, levels, (USERS, 2)), dtype=torch.float32)
        items = torch.tensor(rng.integers(0, levels, (ITEMS, 2)), dtype=torch.float32)
        expected = brute_force_metrics(users, items, pairs(1, 70), pairs(2, 90), (1, 3, 10))
        got = ranked_metrics(users, items, pairs(1, 70), pairs(2, 90), (1, 3, 10))
        for name, values in expected.items():
            np.testing.assert_allclose(got.values[name], list(values.values()), rtol=1e-12)


def test_a_model_that_scores_all_items_alike_takes_no_more_memory_than_any_other() -> None:
    number, users = 4096, 64
    rng = np.random.default_rng(0)
    positives = Histories(Interactions(np.arange(users).repeat(30), rng.integers(0, number, users * 30)), users, number)
    block = 4 * users * number
    random, constant = (
        (torch.randn(users, 2), torch.randn(number, 2)),
        (torch.ones(users, 2), torch.ones(number, 2)),
    )
    for vectors in (random, constant):
        assert largest_tensor(lambda: ranked_metrics(*vectors, positives, None)) <= block  # noqa: B023
        assert largest_tensor(lambda: top_items(table_scorer(*vectors), np.arange(users), None, 20)) <= block  # noqa: B023


def test_top_items_looks_up_what_the_given_users_have_seen() -> None:
    users, items = tables()
    seen, some = pairs(2, 90), np.array([12, 3, 22])
    got, scores = top_items(table_scorer(users, items), some, seen, 5)
    all_scores = users @ items.T
    assert got.tolist() == [brute_force_top(all_scores.numpy(), user, seen)[:5] for user in some]
    torch.testing.assert_close(scores, all_scores[torch.tensor(some)].gather(1, got))


def test_users_with_too_few_items_left_get_no_item_for_the_rest() -> None:
    users, items = tables()
    everything_but_7 = np.delete(np.arange(ITEMS), 7)
    seen = histories(np.zeros(ITEMS - 1, dtype=np.int64), everything_but_7)
    got, scores = top_items(table_scorer(users, items), np.arange(2), seen, 3)
    assert got[0].tolist() == [7, NO_ITEM, NO_ITEM]
    assert scores[0, 1:].tolist() == [-math.inf, -math.inf]
    assert NO_ITEM not in got[1]
    few, _ = top_items(table_scorer(users, items), np.arange(2), seen, 3, candidates=np.array([9, 7]))
    assert few[0].tolist() == [7, NO_ITEM, NO_ITEM]
    assert sorted(few[1].tolist()) == [NO_ITEM, 7, 9]


def test_missing_items_are_no_hits() -> None:
    users, items = tables()
    positives = histories(np.array([0, 1]), np.array([ITEMS - 1, 7]))
    seen = histories(np.ones(ITEMS - 1, dtype=np.int64), np.delete(np.arange(ITEMS), 7))
    assert ranked_metrics(users, items, positives, seen, (3,)).values["recall@3"][1] == 1


def test_a_positive_that_occurs_twice_counts_once() -> None:
    users, items = tables()
    once, twice = (
        histories(np.array([0, 0]), np.array([1, 2])),
        histories(np.array([0, 0, 0]), np.array([1, 2, 2])),
    )
    one, two = (rank_positives(table_scorer(users, items), positives, None) for positives in (once, twice))
    assert one.ranks.tolist() == two.ranks.tolist()


def test_vectors_and_scores_that_are_not_finite_are_refused_by_name() -> None:
    users, items = tables()
    for bad in (math.nan, math.inf):
        broken = items.clone()
        broken[3, 1] = bad
        with pytest.raises(UserError, match=r"items. vectors: 1 of .* NaN or infinite"):
            ranked_metrics(users, broken, pairs(1, 40), None)
    with pytest.raises(UserError, match=r"scores: .* NaN or infinite"):
        ranked_metrics(users.abs() * 1e30, items.abs() * 1e30, pairs(1, 40), None)


def test_positives_outside_the_candidates_are_refused() -> None:
    positives = histories(np.array([0, 1]), np.array([4, 9]))
    with pytest.raises(UserError, match=r"1 items .* \(item index 9 is one\)"):
        ranked_metrics(*tables(), positives, None, candidates=np.array([4, 5]))
