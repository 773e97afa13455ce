"""What a list is chosen from, by a table of all scores, and how alike its items are, by a slow reference."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ptmrec_dist import cli
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.scoring import NO_ITEM
from ptmrec_dist.serving import ServedModel
from ptmrec_dist.serving.digests import write_digests
from ptmrec_dist.serving.diversity import diversified
from ptmrec_dist.serving.tables import write_tables
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from tests.conftest import Project
from tests.vectors import all_vectors

USER = 3


@pytest.fixture(scope="module")
def run(tiny_project: Project) -> FinishedRun:
    return load_run(tiny_project.stage1)


@pytest.fixture(scope="module")
def model(run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tmp_path_factory.mktemp("served")
    write_tables(folder, run, [], "exact", {})
    write_digests(folder)
    return ServedModel(folder)


def _scores(run: FinishedRun) -> dict[str, Tensor]:
    """Full and cold scores of all items for the user."""
    users, items = all_vectors(run.recommender.eval(), run.features, run.dataset.num_users)
    modal = run.recommender.cold_items(run.features)
    return {"full": (users[USER] @ items.T).detach(), "cold": (users[USER] @ modal.T).detach()}


def _cold(run: FinishedRun) -> set[str]:
    parts = [run.dataset.cold_items(part) for part in ("cold_validation", "cold_test")]
    return {run.dataset.item_ids[item] for item in np.concatenate(parts)}


def _expected(run: FinishedRun, scores: Tensor, allowed: set[str]) -> list[str]:
    """Ids of allowed items that the user has not taken in any part, best first."""
    known = run.dataset.sequences(*run.dataset.parts)
    taken = {run.dataset.item_ids[item] for item in known.items[known.users == USER]}
    ids = [run.dataset.item_ids[item] for item in scores.argsort(descending=True, stable=True)]
    return [name for name in ids if name in allowed - taken]


@pytest.mark.parametrize("candidates", ["warm", "cold", "all"])
def test_lists_hold_all_candidates_by_the_score_that_they_have_in_common(
    model: ServedModel, run: FinishedRun, candidates: str
) -> None:
    cold, everything = _cold(run), set(run.dataset.item_ids)
    assert cold
    allowed = {"warm": everything - cold, "cold": cold, "all": everything}[candidates]
    score = _scores(run)["full" if candidates == "warm" else "cold"]
    answer = model.answer({"user_id": [run.dataset.user_ids[USER]]}, top_k=100, candidates=candidates)
    assert answer["item_id"] == _expected(run, score, allowed)
    assert answer["warm"] == [name not in cold for name in answer["item_id"]]


def test_named_items_are_ranked_by_the_full_score_unless_one_of_them_is_cold(
    model: ServedModel, run: FinishedRun
) -> None:
    cold = sorted(_cold(run))
    stock = [name for name in run.dataset.item_ids if name not in cold][::3]
    for named, score in ((stock, "full"), ([*stock, cold[0]], "cold")):
        answer = model.answer(
            {"user_id": [run.dataset.user_ids[USER]]}, top_k=100, candidates="items", items=[*named, "gone"]
        )
        assert answer["item_id"] == _expected(run, _scores(run)[score], set(named))
    assert model.answer({"user_id": [run.dataset.user_ids[USER]]}, candidates="items", items=[])["item_id"] == []
    with pytest.raises(UserError, match=r"\Aitems: got 'gone', expected some of the 60 items of the model\Z"):
        model.answer({"user_id": ["u1"]}, candidates="items", items=["gone"], unknown="error")


def test_excluded_items_are_in_no_list_and_the_others_keep_their_order(model: ServedModel, run: FinishedRun) -> None:
    whole = model.answer({"user_id": ["u1", run.dataset.user_ids[USER]]}, top_k=100)
    exclude = [name for row, name in zip(whole["row"], whole["item_id"]) if row == 1][:5]
    found = model.answer({"user_id": ["u1", run.dataset.user_ids[USER]]}, top_k=100, exclude=exclude)
    kept = [pair for pair in zip(whole["row"], whole["item_id"]) if pair[1] not in exclude]
    assert list(zip(found["row"], found["item_id"])) == kept


def _marginal_relevance(scores: list[float], vectors: Tensor, k: int, weight: float) -> list[int]:
    """Positions of a pool, chosen one by one as in the paper."""
    low, high = min(scores), max(scores)
    relevance = [(score - low) / (high - low) for score in scores]
    chosen: list[int] = [0]
    while len(chosen) < min(k, len(scores)):
        left = [item for item in range(len(scores)) if item not in chosen]
        likeness = [max(float(torch.cosine_similarity(vectors[a], vectors[b], dim=0)) for b in chosen) for a in left]
        values = [(1 - weight) * relevance[item] - weight * most for item, most in zip(left, likeness)]
        chosen.append(left[int(np.argmax(values))])
    return chosen


@pytest.mark.parametrize("weight", [0.3, 0.7, 1.0])
def test_diversified_lists_are_those_of_the_slow_reference(weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(40, 6, generator=generator)
    pools = torch.stack([torch.randperm(40, generator=generator)[:20] for _ in range(3)])
    scores = torch.randn(3, 20, generator=generator).sort(dim=1, descending=True).values
    pools[2, 5:], scores[2, 5:] = NO_ITEM, -torch.inf  # a user with five items left
    items, values = diversified(pools, scores, vectors, 8, weight)
    for row, count in enumerate((20, 20, 5)):
        order = _marginal_relevance(scores[row, :count].tolist(), vectors[pools[row, :count]], 8, weight)
        assert items[row, : len(order)].tolist() == pools[row, order].tolist()
        assert values[row, : len(order)].tolist() == scores[row, order].tolist()
        assert items[row, len(order) :].tolist() == [NO_ITEM] * (8 - len(order))


def test_a_request_for_diversity_gets_less_similar_items_with_their_own_scores(
    model: ServedModel, run: FinishedRun
) -> None:
    _, items = all_vectors(run.recommender.eval(), run.features, run.dataset.num_users)
    number = {name: index for index, name in enumerate(run.dataset.item_ids)}
    likeness = []
    for weight in (0.0, 0.5):
        answer = model.answer({"user_id": [run.dataset.user_ids[USER]]}, top_k=8, diversity=weight)
        chosen = [number[name] for name in answer["item_id"]]
        assert answer["score"] == pytest.approx(_scores(run)["full"][chosen].tolist(), abs=1e-5)
        unit = torch.nn.functional.normalize(items[chosen].detach(), dim=1)
        likeness.append(float((unit @ unit.T).sum()))
    assert likeness[1] < likeness[0]


def test_users_of_an_item_are_those_with_the_highest_scores_who_have_not_taken_it(
    model: ServedModel, run: FinishedRun
) -> None:
    ids, users_of = run.dataset.item_ids, run.dataset.user_ids
    users, items = (
        table.detach() for table in all_vectors(run.recommender.eval(), run.features, run.dataset.num_users)
    )
    modal, known = run.recommender.cold_items(run.features).detach(), run.dataset.sequences(*run.dataset.parts)
    asked = [ids[2], sorted(_cold(run))[0]]
    answer = model.answer({"item_id": asked}, top_k=100)
    everyone = model.answer({"item_id": asked}, top_k=100, exclude_seen=False)
    for row, name in enumerate(asked):
        item = ids.index(name)
        scores = users @ (modal if row else items)[item]
        taken = set(known.users[known.items == item])
        ranked = [user for user in scores.argsort(descending=True).tolist() if user not in taken]
        mine = [entry for entry, of in enumerate(answer["row"]) if of == row]
        assert [answer["user_id"][entry] for entry in mine] == [users_of[user] for user in ranked]
        assert [answer["score"][entry] for entry in mine] == pytest.approx(scores[ranked].tolist(), abs=1e-5)
        assert everyone["row"].count(row) == len(users_of)
        assert taken
    filled_in = {"items": [], "exclude": np.array([], dtype=object), "filters": []}  # as a server does
    assert model.answer({"item_id": asked}, top_k=100, **filled_in) == answer
    assert answer["warm"] == [answer["row"][entry] == 0 for entry in range(len(answer["row"]))]


@pytest.mark.parametrize(
    ("columns", "params", "message"),
    [
        ({"item_id": ["i1", "gone"]}, {}, r"item_id: got 1 unknown \('gone'\), expected some of the 60 items"),
        ({"item_id": ["i1", None]}, {}, "row 1: item_id: got null, expected a string or a whole number"),
        (
            {"item_id": ["i1"], "user_id": ["u1"]},
            {},
            "columns with item_id: got str 'user_id', expected some of item_id",
        ),
        ({"item_id": ["i1"]}, {"diversity": 0.5}, "params: got others than top_k and exclude_seen with item_id"),
    ],
)
def test_questions_for_users_that_make_no_sense_are_one_line(
    model: ServedModel, columns: dict[str, list[str | None]], params: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        model.answer(columns, **params)


def test_a_score_is_the_sum_of_what_ids_and_what_features_contribute(model: ServedModel, run: FinishedRun) -> None:
    users, _ = all_vectors(run.recommender.eval(), run.features, run.dataset.num_users)
    state, number = run.recommender.state_dict(), {name: index for index, name in enumerate(run.dataset.item_ids)}
    columns = {"user_id": [run.dataset.user_ids[USER]]}
    answer = model.answer(columns, top_k=5, explain=True)
    for item, score, from_ids, from_features in zip(
        *(answer[name] for name in ("item_id", "score", "score_from_ids", "score_from_features")), strict=True
    ):
        expected = torch.dot(users[USER, :8], state["item_embeddings.weight"][number[item]]).item()
        projected = sum(
            state[f"maps.{modality}.weight"] @ table[number[item]] for modality, table in run.features.items()
        )
        assert from_ids == pytest.approx(expected, abs=1e-6)
        assert from_features == pytest.approx(torch.dot(users[USER, 8:], projected).item(), abs=1e-6)
        assert from_ids + from_features == pytest.approx(score, abs=1e-6)
    cold = model.answer(columns, top_k=5, candidates="cold", explain=True)
    assert set(cold["score_from_ids"]) == {0.0}
    assert cold["score_from_features"] == pytest.approx(cold["score"], abs=1e-6)


def test_reasons_are_the_most_similar_items_of_the_history_and_the_score_of_the_content(
    model: ServedModel, run: FinishedRun
) -> None:
    ids, cold = run.dataset.item_ids, _cold(run)
    number = {name: index for index, name in enumerate(ids)}
    _, items = all_vectors(run.recommender.eval(), run.features, run.dataset.num_users)
    modal = run.recommender.cold_items(run.features).detach()
    history = [ids[3], ids[11], ids[20], ids[31], sorted(cold)[0]]
    columns = {"user_id": [run.dataset.user_ids[USER], None, None], "history": [None, history, []]}
    for candidates, vectors in (("warm", items.detach()), ("all", modal)):
        answer = model.answer(columns, top_k=4, candidates=candidates, explain=True)
        for row, item, because, content in zip(
            *(answer[name] for name in ("row", "item_id", "because", "content_score"))
        ):
            if row == 0:
                everything = run.dataset.sequences(*run.dataset.parts)
                taken = {ids[index] for index in everything.items[everything.users == USER]}
                assert content == pytest.approx(_scores(run)["cold"][number[item]].item(), abs=1e-5)
            else:
                taken = set(history if row == 1 else [])
            known = taken - cold if candidates == "warm" else taken

            def cosine(name: str, item: str = item, vectors: Tensor = vectors) -> float:
                return float(torch.cosine_similarity(vectors[number[item]], vectors[number[name]], dim=0))

            assert because == sorted(known, key=cosine, reverse=True)[:3]
    assert "because" not in model.answer(columns, top_k=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--diversity", "2"), "diversity: got 2.0, expected 0 to 1"),
        (("--candidates", "cold", "--items", "i1,i2"), "candidates: got 'cold', expected warm or nothing with"),
    ],
)
def test_contradicting_options_are_one_line(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run("recommend", ["--model", "absent", "--users", "u1", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
