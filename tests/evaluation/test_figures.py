"""Figures of a page: one setting has one colour in all of them, rings stand where a run was evaluated, names fit."""

import re

import pytest

from ptmrec_dist.evaluation.figures import Curve, bars, learning_curves, styles_of
from ptmrec_dist.evaluation.figures.style import legend_height, wrapped
from ptmrec_dist.evaluation.outcomes import SeedRun, Setting, accuracy, curves

METRICS = {"test": {"recall@20": 0.2}, "cold_test": {"recall@20": 0.4}}


def _setting(name: str, stage: int) -> Setting:
    history = [{"epoch": epoch, "validation.recall@20": 0.1 * epoch} for epoch in (1, 2)]
    return Setting(name, "g", (SeedRun(stage, METRICS, history, 2),))


def _colours(svg: str, names: list[str]) -> set[str]:
    return {colour for name in names if (colour := styles_of(names)[name]["color"]) in svg}


def test_a_setting_has_one_colour_in_figures_of_all_and_of_some_settings() -> None:
    names = ["frozen", "prompt", "lora"]
    settings = [_setting("frozen", 1), _setting("prompt", 2), _setting("lora", 2)]
    styles = styles_of(names)
    (all_of_them,) = accuracy(settings, ["recall@20"], styles, {})
    stage1, stage2 = curves(settings, styles)
    assert _colours(all_of_them.svg, names) == {styles[name]["color"] for name in names}
    assert _colours(stage1.svg, names) == {styles["frozen"]["color"]}
    assert _colours(stage2.svg, names) == {styles["prompt"]["color"], styles["lora"]["color"]}


def test_many_settings_differ_in_colour_and_more_in_colour_marker_and_dashes() -> None:
    styles = list(styles_of(map(str, range(64))).values())
    assert len({style["color"] for style in styles[:16]}) == 16
    assert len({tuple(map(str, style.values())) for style in styles}) == 64


def test_rings_stand_at_evaluations_that_were_kept_and_nowhere_else() -> None:
    # At epoch 2, the mean of the kept 0 and 4, there is no evaluation; at epoch 3, which another run kept, neither.
    seeds = [Curve([(0, 0.1), (4, 0.3)], 4), Curve([(0, 0.1), (4, 0.5)], 0), Curve([(0, 0.1), (4, 0.5)], 3)]
    svg = learning_curves({"a": seeds}, styles=styles_of(["a"]), label="Recall@20")
    marks = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="([^"]*#0072b2[^"]*)"', svg)
    rings = [(x, y) for x, y, style in marks if "fill-opacity: 0;" in style]
    evaluated = [x for x, _, style in marks if "fill: #0072b2; stroke" in style]
    assert sorted(x for x, _ in rings) == sorted(evaluated)
    assert len(rings) == 2
    assert "a from 0.100 at epoch 0, kept 0.300 at epoch 4 and 0.100 at epoch 0" in svg


@pytest.mark.parametrize("name", ["x" * 100, "a-run-" * 20, "lr_0.01_" * 12, "words " * 20, "_under", "$x$ & <b>"])
def test_names_of_any_length_are_whole_in_lines_that_fit(name: str) -> None:
    name = name.strip()
    lines = wrapped(name).splitlines()
    assert all(len(line) <= 46 for line in lines)
    assert "".join(lines).replace(" ", "") == name.replace(" ", "")
    # Each line has its room below the plot, and as many bars more of it.
    assert legend_height([name, name]) == pytest.approx(0.22 * 2 * len(lines), rel=0.51)
    curve = [Curve([(0, 0.1)])]
    svg = learning_curves({name: curve, "b": curve}, styles=styles_of([name, "b"]), label="x")
    shown = re.sub(r"<[^>]+>|\s", "", svg[svg.index('id="legend_1"') :].replace("&amp;", "&"))
    assert name.replace(" ", "").replace("<", "&lt;").replace(">", "&gt;") in shown


def test_a_long_name_takes_nothing_of_the_width_of_its_bar() -> None:
    def width(name: str) -> float:
        svg = bars({"warm items": {name: [0.1234]}}, styles=styles_of([name]), label="NDCG@20")
        edges = re.search(r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*"[^>]*style="fill: #0072b2"', svg)
        assert edges is not None
        return float(edges[2]) - float(edges[1])

    assert width("a-long-run-name_" * 6) == pytest.approx(width("a"), rel=0.05)


def test_every_line_of_a_long_name_has_room_above_its_bar() -> None:
    def height(name: str) -> float:
        svg = bars({"warm items": {name: [0.1]}}, styles=styles_of([name]))
        box = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', svg)
        assert box is not None
        return float(box[1])

    name = "a-long-run-name_" * 6
    more = len(wrapped(name).splitlines()) - 1
    assert more >= 1
    assert height(name) - height("a") >= more * 9.5  # points of a line of this font
