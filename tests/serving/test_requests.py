"""Invalid, odd or too large requests: a one-line error, or an answer that lists what was skipped."""

import base64
import io
import logging
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ptmrec_dist.config import PackConfig, Stage1Config
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.encoders.sources.loading import load_backbone_of, save_backbone
from ptmrec_dist.errors import UserError
from ptmrec_dist.serving import ServedModel, packages
from ptmrec_dist.serving.digests import write_digests
from ptmrec_dist.serving.ids import IdIndex
from ptmrec_dist.serving.tables import write_tables
from ptmrec_dist.training.finished_run import load_run
from ptmrec_dist.training.stage1 import train_stage1
from tests.conftest import UNTRACKED, Project
from tests.vectors import all_vectors

BUFFER = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(BUFFER, "PNG")
PICTURE = base64.b64encode(BUFFER.getvalue()).decode()


@pytest.fixture(scope="module")
def folder(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A served model's folder, with its encoder."""
    folder = tmp_path_factory.mktemp("served")
    run = load_run(tiny_project.stage1)
    write_tables(folder, run, run.record.modalities, "exact", {})
    save_backbone(load_backbone_of(run.record.encoder), folder / "encoder")
    write_digests(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return ServedModel(folder)


def lists(answer: dict) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for row, item in zip(answer["row"], answer["item_id"]):
        found.setdefault(row, []).append(item)
    return found


def test_unknown_items_of_a_history_are_skipped_and_named(model):
    answer = model.answer({"history": [["i1", "gone", "i4", 99, "gone"], ["i1", "i4"]]}, top_k=3)
    assert lists(answer)[0] == lists(answer)[1]
    assert answer["unknown_items"] == [["gone", "99"], None, None, [], None, None]
    assert answer["known_user"] == [False] * 6
    with pytest.raises(UserError, match=r"history: got 2 unknown \('gone', '99'\), expected some of the 60 items"):
        model.answer({"history": [["i1", "gone", "i4", 99, "gone"], ["i1", "i4"]]}, unknown="error")


def test_unknown_users_are_answered_as_visitors_without_a_history_and_marked(model):
    answer = model.answer({"user_id": ["nobody", "u3", None, 17], "history": [None, None, [], None]}, top_k=4)
    rows = lists(answer)
    assert rows[0] == rows[2] == rows[3]
    assert rows[1] == lists(model.answer({"user_id": ["u3"]}, top_k=4))[0]
    assert answer["user_id"] == ["nobody"] * 4 + ["u3"] * 4 + [None] * 4 + ["17"] * 4
    assert answer["known_user"] == [False] * 4 + [True] * 4 + [False] * 8
    with pytest.raises(UserError, match=r"user_id: got 2 unknown \('nobody', '17'\), expected some of the 40 users"):
        model.answer({"user_id": ["nobody", "u3", 17, "nobody"]}, unknown="error")


def test_an_unknown_user_gets_the_list_of_the_average_user(model, tiny_project):
    run = load_run(tiny_project.stage1)
    users, items = all_vectors(run.recommender.eval(), run.features, run.dataset.num_users)
    train = run.dataset.interactions("train")
    centre = torch.stack([items[item] for item in train.items]).mean(dim=0)
    taken = {user: {int(item) for item in train.items[train.users == user]} for user in set(train.users.tolist())}
    looks = {user: sum(items[item] - centre for item in own) / (len(own) + 5) for user, own in taken.items()}
    weight = model._tables["fold_in.weight"][:, : users.shape[1]]
    mean = sum(users[user] for user in taken) / len(taken) - sum(looks.values()) / len(looks) @ weight
    warm = np.setdiff1d(
        np.arange(60), np.concatenate([run.dataset.cold_items(f"cold_{part}") for part in ("validation", "test")])
    )
    best = warm[(items.detach()[warm] @ mean.detach()).argsort(descending=True)[:5].numpy()]
    assert lists(model.answer({"user_id": ["nobody"]}, top_k=5))[0] == [run.dataset.item_ids[item] for item in best]


def test_items_given_twice_count_once(model):
    twice = model.answer({"history": [["i1", "i4", "i1"]]})
    assert twice == model.answer({"history": [["i1", "i4"]]})
    assert not set(twice["item_id"]) & {"i1", "i4"}


def test_new_items_are_scored_for_unknown_users_and_histories_too(model):
    answer = model.answer(
        {
            "user_id": ["nobody", None, None],
            "history": [None, [], ["i1", "gone"]],
            "image": [PICTURE] * 3,
            "text": ["a red thing"] * 3,
        }
    )
    assert answer["score"][0] == answer["score"][1] != answer["score"][2]
    assert answer["known_user"] == [False] * 3
    assert answer["unknown_items"] == [[], [], ["gone"]]


def test_empty_columns_are_as_good_as_none(model):
    plain = model.answer({"user_id": ["u1"]})
    assert model.answer({"user_id": ["u1"], "history": [math.nan], "image": [None], "text": [pd.NA]}) == plain


def test_numbers_stand_for_the_id_of_their_value_and_strings_for_themselves():
    index = IdIndex(["0017", "a", "5", "05", "-3", "\uff11\uff12"], "user_id")
    assert [index.find(name) for name in ("0017", "17", "a", 17, "5", "05", -3, 12, 99)] == [
        0,
        None,
        1,
        0,
        2,
        3,
        4,
        None,
        None,
    ]
    with pytest.raises(
        UserError, match=r"user_id: got the number 5, which matches both '5' and '05'; send ids as strings"
    ):
        index.find(5)


def test_ids_with_leading_zeros_are_found_as_numbers_too(tmp_path):
    rows = [f"{user:04d},{item:03d}" for user in range(1, 9) for item in range(1, 9) if (user + item) % 3]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id", *rows]))
    pack(PackConfig(interactions=tmp_path / "log.csv", out=tmp_path / "shards", split="random", core=0))
    settings = {"recommender": "bpr", "epochs": 0, "device": "cpu", "tracking": UNTRACKED}
    train_stage1(Stage1Config(shards=tmp_path / "shards", out=tmp_path / "run", **settings))
    (tmp_path / "served").mkdir()
    write_tables(tmp_path / "served", load_run(tmp_path / "run"), [], "exact", {})
    write_digests(tmp_path / "served")
    model = ServedModel(tmp_path / "served")
    exact = model.answer({"user_id": ["0003", None], "history": [None, ["001", "004"]]})
    assert exact["known_user"][0]
    assert model.answer({"user_id": [3, None], "history": [None, [1, 4.0]]}) == exact
    assert model.answer({"user_id": [3.0, math.nan], "history": [math.nan, np.array([1, 4])]}) == exact
    assert not any(model.answer({"user_id": ["3"]})["known_user"])


ODD_CELLS = [
    True,
    1.5,
    math.inf,
    2.0**53,
    b"u1",
    {"a": 1},
    pytest.param(object(), id="object"),
    ["u1"],
    ("u1",),
    np.array(["u1"]),
    1j,
]


@pytest.mark.parametrize("cell", ODD_CELLS, ids=repr)
def test_cells_that_are_no_user_id_get_one_line(cell, model):
    with pytest.raises(
        UserError, match=r"\Arow 1: user_id: got .*, (expected a string or a whole number|.*send ids as strings)\Z"
    ):
        model.answer({"user_id": ["u1", cell]})


ODD_HISTORIES = [
    5,
    "i1",
    "",
    True,
    1.5,
    {"i1": 1},
    b"i1",
    np.array("i1"),
    np.array([["i1"]]),
    pytest.param(object(), id="object"),
    {"i1"},
]


@pytest.mark.parametrize("history", ODD_HISTORIES, ids=repr)
def test_cells_that_are_no_history_get_one_line(history, model):
    with pytest.raises(UserError, match=r"\Arow 0: history: got .*, expected a list of item ids\Z"):
        model.answer({"history": [history]})


@pytest.mark.parametrize("item", [None, math.nan, ["i1"], [], {"a": 1}, True, 1.5, [["i1"], ["i1", "i2"]]], ids=repr)
def test_histories_that_hold_no_ids_get_one_line(item, model):
    with pytest.raises(UserError, match=r"\Arow 0: history: got .*, expected a string or a whole number\Z"):
        model.answer({"history": [["i1", item]]})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "got no rows"),
        ({"user_id": []}, "got no rows"),
        ({"text": ["a"]}, "row 0: got neither"),
        ({"user_id": ["u1"], "history": [["i1"]]}, "row 0: got both"),
        ({"user_id": [None]}, "row 0: got neither"),
        ({"userid": ["u1"]}, r"columns: got str 'userid', expected some of user_id, history, image, text"),
        ({"user_id": ["u1"], 0: ["u1"]}, r"columns: got int 0, expected some of"),
        ({"user_id": ["u1", "u2"], "history": [None]}, "expected the same number in each"),
        ({"user_id": ["u1"], "text": ["a"]}, "got no column image"),
        ({"user_id": ["u1"], "image": [PICTURE]}, "got no column text"),
    ],
)
def test_tables_that_are_no_request_get_one_line(columns, message, model):
    with pytest.raises(UserError, match=message):
        model.answer(columns)


ODD_CONTENTS = [5, True, "", " \n", ["a"], {"a": 1}, b"a", math.inf]


@pytest.mark.parametrize("value", ODD_CONTENTS, ids=repr)
@pytest.mark.parametrize("column", ["image", "text"])
def test_cells_that_are_no_content_of_an_item_get_one_line(column, value, model):
    columns = {"user_id": ["u1"] * 2, "image": [PICTURE] * 2, "text": ["a"] * 2}
    columns[column] = [columns[column][0], value]
    with pytest.raises(UserError, match=rf"\Arow 1: {column}: got .*, expected the {column} of a new item\Z"):
        model.answer(columns)


def test_a_row_without_the_content_that_another_has_is_said_to_have_nothing(model):
    with pytest.raises(UserError, match=r"\Arow 0: text: got nothing, expected the text of a new item\Z"):
        model.answer({"user_id": ["u1"] * 2, "image": [PICTURE] * 2, "text": [math.nan, "a"]})


@pytest.mark.parametrize(
    "image", ["QUJD", "A", "Ä", "http://[::1", "https://a b/", "http://", "data:image/png;base64,QUJD"]
)
def test_strings_that_are_no_image_get_one_line(image, model):
    with pytest.raises(UserError, match=r"\Arow 1: image: .*") as raised:
        model.answer({"user_id": ["u1"] * 3, "image": [PICTURE, image, image], "text": ["a"] * 3})
    assert "\n" not in str(raised.value)


def test_odd_text_is_read_or_refused(model):
    with pytest.raises(UserError, match="surrogate"):
        model.answer({"user_id": ["u1"], "image": [PICTURE], "text": ["a\ud800"]})
    for text in ("\0", "👩‍🚀", "<|endoftext|>" * 200):
        assert math.isfinite(model.answer({"user_id": ["u1"], "image": [PICTURE], "text": [text]})["score"][0])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_k": value}, "top_k: got .*, expected a whole number, 1 or more")
        for value in (None, "ten", "10", -1, 0, 1.5, 1e9, True, math.nan, [1], {}, b"1")
    ]
    + [({"exclude_seen": value}, "exclude_seen: got .*, expected true or false") for value in (None, "no", 0, 1.0, [])]
    + [({"explain": value}, "explain: got .*, expected true or false") for value in (None, "no", 1)]
    + [
        ({"candidates": value}, "candidates: got .*, expected warm or cold or all or items")
        for value in (None, "yes", 1, ["all"])
    ]
    + [
        ({name: value}, f"{name}: got .*, expected a list of item ids, each a string")
        for name in ("items", "exclude")
        for value in (None, "i1", [1], {"i1": 1})
    ]
    + [({"items": ["i1"]}, "items: got 1 ids, but candidates is 'warm'; expected 'items'")]
    + [
        ({"diversity": value}, "diversity: got .*, expected a number from 0 to 1")
        for value in (None, "1", -0.1, 1.1, True, math.nan)
    ]
    + [({"unknown": value}, "unknown: got .*, expected skip or error") for value in (None, "", "SKIP", 1, ["skip"])]
    + [
        (
            {"topk": 5},
            "params: got str 'topk', expected some of top_k, exclude_seen, candidates, items, exclude, filters, diversity, "
            "explain, unknown",
        )
    ],
)
def test_parameters_that_are_none_get_one_line(params, message, model):
    with pytest.raises(UserError, match=rf"\A{message}\Z"):
        model.answer({"user_id": ["u1"]}, **params)


@pytest.mark.parametrize(
    ("columns", "params", "message"),
    [
        (
            {"user_id": ["u1"] * 1500},
            {"top_k": 10**6},
            "rows times top_k: got 1500000000, expected at most 100000.*RECOMMENDATIONS",
        ),
        ({"user_id": ["u1"]}, {"top_k": 10**30}, "rows times top_k: got 10{30}, .*PTMREC_MAX_RECOMMENDATIONS"),
        ({"user_id": ["u1"] * 10_001}, {}, "rows: got 10001, expected at most 10000; .*PTMREC_MAX_ROWS"),
        (
            {"history": [["i1"] * 10_001]},
            {},
            "row 0: history: items: got 10001, expected at most 10000; .*PTMREC_MAX_HISTORY",
        ),
        (
            {"user_id": ["u1"], "image": [PICTURE], "text": ["a" * 20_001]},
            {},
            "row 0: characters of the text: got 20001, expected at most 20000; .*PTMREC_MAX_TEXT_CHARACTERS",
        ),
        (
            {"user_id": ["u1"] * 257, "image": [PICTURE] * 257, "text": [str(row) for row in range(257)]},
            {},
            "new items: got 257, expected at most 256; .*PTMREC_MAX_NEW_ITEMS",
        ),
        (
            {"user_id": ["u1"], "image": ["A" * 14_000_000], "text": ["a"]},
            {},
            "row 0: bytes of an image: .*PTMREC_MAX_IMAGE_BYTES",
        ),
    ],
)
def test_requests_beyond_the_limits_get_one_line(columns, params, message, model):
    with pytest.raises(UserError, match=rf"\A{message}"):
        model.answer(columns, **params)


def test_environment_sets_the_limits(folder, monkeypatch):
    monkeypatch.setenv("PTMREC_MAX_ROWS", "2")
    monkeypatch.setenv("PTMREC_MAX_RECOMMENDATIONS", " 6 ")
    model = ServedModel(folder, new_items=False)
    assert len(model.answer({"user_id": ["u1", "u2"]}, top_k=3)["row"]) == 6
    with pytest.raises(UserError, match="rows: got 3, expected at most 2"):
        model.answer({"user_id": ["u1"] * 3}, top_k=1)
    with pytest.raises(UserError, match="rows times top_k: got 8, expected at most 6"):
        model.answer({"user_id": ["u1"] * 2}, top_k=4)


@pytest.mark.parametrize("value", ["ten", "", "0", "-1", "1.5", "1e3", "²"])
def test_limits_that_are_no_numbers_are_refused_before_anything_is_loaded(value, folder, monkeypatch):
    monkeypatch.setenv("PTMREC_MAX_ROWS", value)
    with pytest.raises(UserError, match=r"PTMREC_MAX_ROWS: got .*, expected a whole number of 1 or more"):
        ServedModel(folder)


def test_other_versions_of_packages_are_named_once(caplog):
    packages._warn.cache_clear()
    recorded = packages.installed_packages()
    with caplog.at_level(logging.WARNING):
        packages.compare_packages(recorded | {"torch": recorded["torch"].partition("+")[0] + "+other"})
        assert not caplog.records
        for _ in range(2):
            packages.compare_packages(recorded | {"torch": "1.0"})
    (record,) = caplog.records
    assert f"torch 1.0 (installed: {recorded['torch']})" in record.getMessage()
    assert "numpy" not in record.getMessage()
