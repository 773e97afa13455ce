"""Pictures of a sweep: what mattered is computed from trials that were trained to their end."""

from dataclasses import replace
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from ptmrec_dist.files import UNFINISHED
from ptmrec_dist.sweep.figures import importances, plot
from ptmrec_dist.sweep.space import Space
from ptmrec_dist.sweep.trials import State, Trial

SPACE: Space = {"kt_weight": FloatDistribution(0, 1), "prompt.length": CategoricalDistribution([2, 4, 8])}


def _trials(state: State, values: dict[tuple[float, int], float]) -> list[Trial]:
    points = [{"kt_weight": weight, "prompt.length": length} for weight, length in values]
    return [
        Trial(number, point, state, value)
        for number, (point, value) in enumerate(zip(points, values.values(), strict=True))
    ]


GRID = [(weight / 5, length) for weight in range(6) for length in (2, 4, 8)]
COMPLETE = _trials("complete", {point: 0.3 + 0.2 * point[0] for point in GRID})
# Those that were stopped say the opposite: the length decides, the weight does nothing.
PRUNED = _trials("pruned", {point: 0.1 * point[1] for point in GRID})


def test_importance_is_that_of_complete_trials_alone() -> None:
    found = importances(SPACE, [*PRUNED, *COMPLETE])
    assert found == importances(SPACE, COMPLETE)
    assert found["kt_weight"] > 0.9


def test_the_pictures_count_both_kinds_of_trials_and_show_every_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    texts: dict[str, list[str]] = {}

    def note(figure: Figure, path: Path, **_: object) -> None:
        axes = figure.axes[0]
        labels = [label.get_text() for label in (*axes.get_xticklabels(), *axes.get_yticklabels())]
        Path(path).touch()
        texts[Path(path).name.removesuffix(UNFINISHED)] = [figure.get_suptitle(), *labels]

    monkeypatch.setattr(Figure, "savefig", note)
    plot(SPACE, [*PRUNED[:7], *COMPLETE], dict, "recall@20", tmp_path)
    assert texts.keys() == {"parallel_coordinates.png", "importance.png"}
    for name, shown in texts.items():
        assert shown[0].startswith("18 complete trials, 7 stopped early"), name
        assert {"kt_weight", "prompt.length"} <= set(shown), name


def test_a_line_has_dots_on_the_axes_of_what_its_trial_reads_and_on_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    lines: list[list[float]] = []

    def note(figure: Figure, path: Path, **_: object) -> None:
        if "parallel" in Path(path).name:
            lines.extend(list(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == ".")
        Path(path).touch()

    monkeypatch.setattr(Figure, "savefig", note)
    plot(SPACE, COMPLETE, lambda point: {"kt_weight": point["kt_weight"]}, "recall@20", tmp_path)
    assert lines == [[0, 2]] * len(COMPLETE)


@pytest.mark.parametrize("complete", [[], COMPLETE[:1], [replace(trial, value=0.5) for trial in COMPLETE]])
def test_without_complete_trials_that_differ_there_is_no_importance_and_the_output_says_why(
    complete: list[Trial], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = plot(SPACE, [*PRUNED, *complete], dict, "recall@20", tmp_path)
    assert [path.name for path in written] == ["parallel_coordinates.png"]
    assert all(path.stat().st_size for path in written)
    trials = "complete trial" if len(complete) == 1 else "complete trials"
    assert f"importance.png: not plotted, got {len(complete)} {trials}, expected" in capsys.readouterr().out
