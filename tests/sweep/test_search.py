"""A resumed search has the results of the interrupted one."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from ptmrec_dist.config import AshaConfig, SweepConfig
from ptmrec_dist.errors import UserError
from ptmrec_dist.evaluation.metrics import SELECT
from ptmrec_dist.sweep.search import SweepSearch, make_scheduler, rungs_of
from ptmrec_dist.sweep.space import read_space
from ptmrec_dist.sweep.trials import Trial, TrialBook

SPACE = {"kt_weight": {"uniform": [0.0, 1.0]}, "prompt.length": {"randint": [1, 9]}}


def _config(**changes: Any) -> SweepConfig:
    return SweepConfig(**({"stage1": Path("a"), "out": Path("b"), "space": SPACE, "trials": 6} | changes))


def _search(config: SweepConfig, book: TrialBook) -> SweepSearch:
    return SweepSearch(config, read_space(config), book, lambda trial: {"number": trial.number}, lambda trial: None)


def _evaluate(book: TrialBook, number: int, *values: float, whole: bool = True) -> None:
    run = book.folder / f"{number:04d}"
    run.mkdir(exist_ok=True)
    lines = [json.dumps({"epoch": epoch, book.metric: value}) for epoch, value in enumerate(values)]
    (run / "history.jsonl").write_text("\n".join(lines))
    if whole:
        (run / "metrics.json").write_text("{}")


def _suggest(search: SweepSearch, name: str) -> int | str:
    job = search.suggest(name)
    return job if job == Searcher.FINISHED else job["job"]["number"]


@pytest.mark.parametrize("kind", ["optuna", "random"])
def test_open_and_failed_trials_are_handed_out_first_and_ended_ones_never_again(tmp_path: Path, kind: Any) -> None:
    config, book = _config(search=kind), TrialBook(tmp_path, "validation", "best")
    search = _search(config, book)
    assert [_suggest(search, name) for name in "abcd"] == [0, 1, 2, 3]
    _evaluate(book, 0, 0.1, 0.3, 0.2)
    search.on_trial_complete("a", {SELECT: 0.3})
    _evaluate(book, 1, 0.1, 0.05, whole=False)
    search.on_trial_complete("b", {SELECT: 0.1})
    search.on_trial_complete("c", None, error=True)
    _evaluate(book, 3, 0.4)  # ended, but the driver was killed before it knew
    suggested = {trial.number: trial.point for trial in book.read()}
    again = _search(config, book)
    assert [_suggest(again, name) for name in "wxyz"] == [2, 4, 5, Searcher.FINISHED]
    trials = book.read()
    assert [trial.state for trial in trials] == ["complete", "pruned", "failed", "complete", "open", "open"]
    assert [trial.value for trial in trials[:4]] == [0.3, 0.1, None, 0.4]
    assert trials[0].epoch == 1
    assert {number: trials[number].point for number in suggested} == suggested
    assert len({json.dumps(trial.point) for trial in trials}) == 6  # the sampler does not repeat its samples


def test_results_of_ended_trials_are_replayed_into_optuna(tmp_path: Path) -> None:
    config, book = _config(trials=40), TrialBook(tmp_path, "validation", "best")
    search = _search(config, book)
    for number in range(20):
        search.suggest(str(number))
        point = book.read()[number].point
        _evaluate(book, number, 1.0 - abs(point["kt_weight"] - 0.25))
        search.on_trial_complete(str(number), {SELECT: 1.0})
    again = _search(config, book)
    later = []
    for number in range(20, 30):
        again.suggest(str(number))
        later.append(book.read()[number].point["kt_weight"])
    assert sum(abs(value - 0.25) < 0.25 for value in later) >= 8  # by chance 5


def _grid_after(ended: int, folder: Path) -> tuple[SweepConfig, TrialBook]:
    """A sweep over a grid of four points of which some have ended."""
    space = {"prompt.depth": {"choice": [1, 2]}, "prompt.length": {"choice": [3, 4]}}
    config, book = _config(search="grid", trials=None, space=space), TrialBook(folder, "validation", "best")
    search = _search(config, book)
    for number in range(ended):
        search.suggest(str(number))
        _evaluate(book, number, 0.1)
    return config, book


def test_a_resumed_grid_starts_at_its_first_open_point(tmp_path: Path) -> None:
    config, book = _grid_after(3, tmp_path)
    again = _search(config, book)
    assert [_suggest(again, name) for name in "xy"] == [3, Searcher.FINISHED]
    assert [tuple(trial.point.values()) for trial in book.read()] == [(1, 3), (1, 4), (2, 3), (2, 4)]


def test_asha_decides_after_an_interruption_as_it_would_have_without_one(tmp_path: Path) -> None:
    config, book = _config(asha=AshaConfig(grace=1, reduction=2)), TrialBook(tmp_path, "validation", "best")
    undisturbed = make_scheduler(config, 9, book)
    histories = [[0.1, 0.2, 0.3], [0.1, 0.4, 0.5], [0.1, 0.15, 0.6], [0.1, 0.5, 0.4]]
    for number, values in enumerate(histories):
        trial = book.add({})
        stub = SimpleNamespace(trial_id=trial.name)
        undisturbed.on_trial_add(None, stub)
        for epoch in range(len(values)):
            undisturbed.on_trial_result(None, stub, {"epoch": epoch, SELECT: max(values[: epoch + 1])})
        _evaluate(book, number, *values)
    resumed = make_scheduler(config, 9, book)
    for number, value in enumerate([0.0, 0.17, 0.25, 0.31, 0.44, 0.46, 0.9]):
        answers = []
        for scheduler in (undisturbed, resumed):
            stub = SimpleNamespace(trial_id=f"new {number}")
            scheduler.on_trial_add(None, stub)
            answers.append([scheduler.on_trial_result(None, stub, {"epoch": epoch, SELECT: value}) for epoch in (1, 2)])
        assert answers[0] == answers[1], value
    fresh = make_scheduler(config, 9, TrialBook(tmp_path / "empty", "validation", "best"))
    stub = SimpleNamespace(trial_id="x")
    fresh.on_trial_add(None, stub)
    assert fresh.on_trial_result(None, stub, {"epoch": 1, SELECT: 0.0}) == "CONTINUE"  # knows nothing to compare with


def test_a_trial_that_has_trained_to_its_end_is_not_stopped_there(tmp_path: Path) -> None:
    config, book = _config(asha=AshaConfig(grace=1, reduction=2)), TrialBook(tmp_path, "validation", "best")
    _evaluate_all = [book.add({}), book.add({})]
    for trial in _evaluate_all:
        _evaluate(book, trial.number, 0.9, 0.9, 0.9, 0.9, 0.9)
    scheduler = make_scheduler(config, 4, book)
    late = SimpleNamespace(trial_id="late")
    scheduler.on_trial_add(None, late)
    assert scheduler.on_trial_result(None, late, {"epoch": 1, SELECT: 0.95}) == "CONTINUE"
    assert scheduler.on_trial_result(None, late, {"epoch": 2, SELECT: 0.95}) == "CONTINUE"
    assert scheduler.on_trial_result(None, late, {"epoch": 4, SELECT: 0.95}) == "CONTINUE"


def test_reports_after_each_rung_alone_lead_to_the_decisions_that_those_of_every_evaluation_do(tmp_path: Path) -> None:
    config, book = _config(asha=AshaConfig(grace=2, reduction=2)), TrialBook(tmp_path, "validation", "best")
    every, after_rungs = (make_scheduler(config, 20, book) for _ in range(2))
    stopped = []
    for number, step in enumerate([3, 1, 5, 2, 3, 1]):  # epochs between evaluations
        stub = SimpleNamespace(trial_id=f"{number}")
        every.on_trial_add(None, stub)
        after_rungs.on_trial_add(None, stub)
        left = rungs_of(config, 20)
        for epoch in range(step, 21, step):
            result = {"epoch": epoch, SELECT: ((number * 7) % 5) / 10 + epoch / 100}
            decision, later = every.on_trial_result(None, stub, result), [rung for rung in left if rung > epoch]
            assert decision == (after_rungs.on_trial_result(None, stub, result) if later != left else "CONTINUE")
            left = later
            if decision == "STOP":
                stopped.append((number, epoch))
                break
    assert len(stopped) > 1


@pytest.mark.parametrize(
    ("asha", "epochs", "rungs"),
    [
        (AshaConfig(), 1000, [1, 3, 9, 27, 81, 243, 729]),
        (AshaConfig(enabled=False), 1000, []),
        (AshaConfig(grace=4), 4, []),
        (AshaConfig(grace=4), 5, [4]),
    ],
)
def test_no_rung_is_at_the_end_of_a_trial(asha: AshaConfig, epochs: int, rungs: list[int]) -> None:
    assert rungs_of(_config(asha=asha), epochs) == rungs


def test_where_runs_keep_their_last_epoch_that_one_counts(tmp_path: Path) -> None:
    book = TrialBook(tmp_path, "validation", "last")
    trial = book.add({})
    _evaluate(book, 0, 0.1, 0.4, 0.2)
    assert book.kept(trial) == [(0, 0, 0.1), (1, 1, 0.4), (2, 2, 0.2)]
    ended = book.note(trial)
    assert (ended.value, ended.epoch) == (0.2, 2)


def test_the_book_keeps_the_first_of_equal_epochs_and_the_reason_of_a_failure(tmp_path: Path) -> None:
    book = TrialBook(tmp_path, "cold_validation", "best")
    trial = book.add({"kt_weight": 0.5})
    _evaluate(book, 0, 0.1, 0.3, 0.3)
    assert book.note(trial, "loss: kt is not finite") == Trial(
        0, {"kt_weight": 0.5}, "failed", 0.3, 1, "loss: kt is not finite"
    )
    assert book.read()[0].reason == "loss: kt is not finite"


def test_fewer_trials_than_there_are_end_those_that_were_begun_and_start_none(tmp_path: Path) -> None:
    config, book = _config(trials=4), TrialBook(tmp_path, "validation", "best")
    search = _search(config, book)
    for name in "abcd":
        search.suggest(name)
    for number in (0, 1, 3):
        _evaluate(book, number, 0.1)
        search.on_trial_complete("abcd"[number], {SELECT: 0.1})
    fewer = _search(_config(trials=2), book)
    assert [_suggest(fewer, name) for name in "xy"] == [2, Searcher.FINISHED]
    _evaluate(book, 2, 0.2)
    assert _search(_config(trials=2), book).left == 0


def test_a_trial_whose_record_was_removed_is_made_up_for_and_no_other_is_overwritten(tmp_path: Path) -> None:
    config, book = _grid_after(4, tmp_path)
    kept = book.read()
    (book.folder / "0001.json").unlink()
    again = _search(config, book)
    assert [_suggest(again, name) for name in "xy"] == [4, Searcher.FINISHED]
    assert book.read()[:3] == [kept[0], *kept[2:]]
    assert book.read()[3].point == kept[1].point


@pytest.mark.parametrize("content", ["", "[]", '{"number": 0}', '{"number": 0, "point": {}, "state": "lost"}'])
def test_a_damaged_record_of_a_trial_is_refused_by_its_path(content: str, tmp_path: Path) -> None:
    book = TrialBook(tmp_path, "validation", "best")
    book.add({})
    (book.folder / "0000.json").write_text(content)
    with pytest.raises(UserError, match=r"out: .*0000\.json is") as caught:
        book.read()
    assert "\n" not in str(caught.value)
