"""What a registered model answers: lists for users and visitors, scores of new items; on a tiny real CLIP."""

import base64
import re
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image
from safetensors.torch import load_file

from ptmrec_dist.cli import main
from ptmrec_dist.config import (
    RecommendConfig,
    RegisterConfig,
    Stage1Config,
    recommender_config,
)
from ptmrec_dist.errors import UserError
from ptmrec_dist.registry import load_model
from ptmrec_dist.registry.recommending import recommend
from ptmrec_dist.registry.registering import register
from ptmrec_dist.serving.fold_in import PENALTY, PRIOR
from ptmrec_dist.serving.images import MAX_IMAGE_PIXELS
from ptmrec_dist.training.finished_run import FinishedRun, load_run
from ptmrec_dist.training.records import RECOMMENDER_FILE
from ptmrec_dist.training.stage1 import train_stage1
from tests.registry.films import (
    NUM_ITEMS,
    OFF,
    expected_list,
    in_base64,
    lists_of,
    reference_scores,
    seen_items,
    warm_items,
)
from tests.vectors import all_vectors


def test_model_ranks_the_warm_items_that_a_user_has_not_seen(catalogue, films):
    run = load_run(catalogue.stage2)
    full, _ = reference_scores(run)
    ids = run.dataset.user_ids
    answer = films.predict(pd.DataFrame({"user_id": [ids[5], ids[0]]}), params={"top_k": 4})
    warm = warm_items(run.dataset)
    expected = [expected_list(run, full, user, warm - seen_items(run, user), 4) for user in (5, 0)]
    assert lists_of(answer) == expected
    assert answer["user_id"].to_list() == [ids[5]] * 4 + [ids[0]] * 4
    assert answer["rank"].to_list() == [1, 2, 3, 4] * 2
    index = run.dataset.item_ids.index(answer["item_id"][0])
    assert answer["title"][0] == run.dataset.titles[index]
    assert answer["score"][0] == pytest.approx(full[5, index].item(), abs=1e-5)


def test_seen_items_are_included_on_request(catalogue, films):
    run = load_run(catalogue.stage2)
    full, _ = reference_scores(run)
    request = pd.DataFrame({"user_id": run.dataset.user_ids[:3]})
    answer = films.predict(request, params={"top_k": 100, "exclude_seen": False})
    warm = warm_items(run.dataset)
    assert lists_of(answer) == [expected_list(run, full, user, warm, 100) for user in range(3)]


def test_lists_with_cold_items_rank_everything_by_the_cold_score(catalogue, films):
    run = load_run(catalogue.stage2)
    _, cold = reference_scores(run)
    request = pd.DataFrame({"user_id": run.dataset.user_ids[:2]})
    answer = films.predict(request, params={"top_k": 100, "candidates": "all"})
    everything = set(range(NUM_ITEMS))
    expected = [expected_list(run, cold, user, everything - seen_items(run, user), 100) for user in range(2)]
    assert lists_of(answer) == expected


def test_users_may_be_numbers_or_strings_and_unknown_ones_are_named_as_an_error_on_request(films):
    as_numbers = films.predict(pd.DataFrame({"user_id": [3, 1]}))
    as_strings = films.predict(pd.DataFrame({"user_id": ["3", "1"]}))
    pd.testing.assert_frame_equal(as_numbers, as_strings)
    with pytest.raises(MlflowException, match=r"2 unknown \('nobody', '99'\).* 12 users"):
        films.predict(pd.DataFrame({"user_id": ["1", "nobody", "99", "nobody"]}), params={"unknown": "error"})


def test_new_items_are_scored_as_the_catalogue_would_score_the_same_picture_and_text(catalogue, films):
    run = load_run(catalogue.stage2)
    _, cold = reference_scores(run)
    dataset = run.dataset
    item = int(dataset.cold_items("cold_test")[0])
    with tarfile.open(dataset.shard_paths()[0]) as tar:
        picture, text = (tar.extractfile(f"{item:09d}.{kind}").read() for kind in ("jpg", "txt"))
    row = {"image": base64.b64encode(picture).decode(), "text": text.decode()}
    other = row | {"text": "something else"}
    users = [dataset.user_ids[user] for user in (4, 2, 4)]
    request = pd.DataFrame([{"user_id": users[0]} | row, {"user_id": users[1]} | row, {"user_id": users[2]} | other])
    answer = films.predict(request)
    assert answer["user_id"].to_list() == users
    expected = [cold[4, item].item(), cold[2, item].item()]
    assert answer["score"].to_list()[:2] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert answer["score"][2] != pytest.approx(expected[0], rel=1e-3)


@pytest.mark.parametrize(("recommender", "modalities"), [("vbpr", "image"), ("vbpr", "text"), ("freedom", "both")])
def test_new_items_need_only_what_the_recommender_reads(recommender, modalities, catalogue, registered, tmp_path):
    settings = {"recommender": recommender, "modalities": modalities, "model": recommender_config(recommender, dim=8)}
    train_stage1(
        Stage1Config(
            out=tmp_path / "run",
            shards=catalogue.shards,
            features=catalogue.root / "features",
            epochs=0,
            device="cpu",
            tracking=OFF,
            **settings,
        )
    )
    register(RegisterConfig(run=tmp_path / "run", name=f"{recommender}-{modalities}"))
    run = load_run(tmp_path / "run")
    users, _ = all_vectors(run.recommender.eval(), run.features, run.dataset.num_users)
    items = run.recommender.cold_items(run.features)
    with tarfile.open(run.dataset.shard_paths()[0]) as tar:
        picture, text = (tar.extractfile(f"{7:09d}.{kind}").read() for kind in ("jpg", "txt"))
    row = {"image": base64.b64encode(picture).decode(), "text": text.decode()}
    read = row if modalities == "both" else {modalities: row[modalities]}
    request = pd.DataFrame([{"user_id": run.dataset.user_ids[3]} | read])
    answer = load_model(f"models:/{recommender}-{modalities}@candidate").predict(request)
    assert answer["score"][0] == pytest.approx((users[3] @ items[7]).item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"text": "a film"}, "no column image"),
        ({"text": "a film", "image": "https://example.org/a.jpg"}, "'example.org', which this server may not fetch"),
        ({"text": "a film", "image": in_base64(Image.new("RGB", (8, 8)), "GIF")}, "expected a JPEG or PNG"),
        ({"text": "a film", "image": in_base64(Image.new("1", (MAX_IMAGE_PIXELS // 4, 5)), "PNG")}, "pixels"),
        ({"text": "a film", "image": "A" * 20_000_000}, r"bytes of an image: got 1499.*at most 10000000"),
        (
            {"text": "", "image": in_base64(Image.new("RGB", (8, 8)), "PNG")},
            "row 0: text: got str '', expected the text",
        ),
    ],
)
def test_bad_new_items_get_one_clear_line(item, message, films):
    with pytest.raises(MlflowException, match=message):
        films.predict(pd.DataFrame([{"user_id": "1"} | item]))


def test_id_only_models_recommend_but_take_no_new_items(catalogue, registered):
    model = load_model("models:/ids@candidate")
    weights = load_file(catalogue.ids_only / RECOMMENDER_FILE)
    run = load_run(catalogue.ids_only)
    scores = weights["user_embeddings.weight"] @ weights["item_embeddings.weight"].T
    answer = model.predict(pd.DataFrame({"user_id": run.dataset.user_ids[:1]}), params={"top_k": 3})
    assert lists_of(answer) == [expected_list(run, scores, 0, warm_items(run.dataset) - seen_items(run, 0), 3)]
    with pytest.raises(MlflowException, match="takes none"):
        model.predict(pd.DataFrame({"user_id": ["1"], "text": ["a film"]}))
    with pytest.raises(MlflowException, match="candidates: got 'all'"):
        model.predict(pd.DataFrame({"user_id": ["1"]}), params={"candidates": "all"})


def test_recommend_prints_titles_for_each_user(catalogue, registered, capsys):
    recommend(RecommendConfig(model="models:/films@champion", users="1, 2", top_k=3, explain=True))
    printed = capsys.readouterr().out
    request = pd.DataFrame({"user_id": ["1", "2"]})
    answer = load_model("models:/films@champion").predict(request, params={"top_k": 3, "explain": True})
    assert len(answer) == 6
    assert all(title in printed for title in answer["title"])
    for name in ("score", "score_from_ids", "score_from_features"):
        assert all(f"{value:.4f}" in printed for value in answer[name])


def test_recommend_says_whose_lists_are_empty(catalogue, registered, capsys):
    seen = load_run(catalogue.stage2).dataset.item_ids[min(seen_items(load_run(catalogue.stage2), 0))]
    user = load_run(catalogue.stage2).dataset.user_ids[0]
    model = ["recommend", "--model", "models:/films@champion"]
    assert main([*model, "--users", f"{user},nobody", "--items", seen]) == 0
    assert capsys.readouterr().out.endswith("1 of 2 users have none: nothing is left to recommend\n")
    assert main([*model, "--users", "nobody"]) == 0
    assert "nothing is left" not in capsys.readouterr().out


def test_recommend_names_listed_items_that_the_model_does_not_know(catalogue, registered, capsys, tmp_path):
    item = load_run(catalogue.stage2).dataset.item_ids[0]
    ask = ["recommend", "--model", "models:/films@champion", "--items", f"gone,{item}", "--exclude", "lost,gone"]
    for wanted in (["--users", "nobody"], ["--all", "--out", str(tmp_path / "lists.parquet")]):
        assert main([*ask, *wanted]) == 0
        ending = "items: 1 unknown ('gone'), left out\nexclude: 2 unknown ('lost', 'gone'), left out\n"
        assert capsys.readouterr().out.endswith(ending)


def test_recommend_prints_ids_as_they_are_on_one_line_each(registered, capsys):
    odd = ["[bold]a[/bold]", "[/b]", ":smile:", "x" * 200]
    assert main(["recommend", "--model", "models:/films@champion", "--users", ",".join(odd), "--top_k", "1"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for user in odd:
        assert any(f" {user} (unknown) " in line for line in printed)


def test_recommend_answers_users_whom_it_does_not_know_and_marks_them(registered, capsys):
    arguments = ["recommend", "--model", "models:/films@champion", "--users", "nobody,1", "--top_k", "2"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "nobody (unknown)" in printed
    assert "1 (unknown)" not in printed
    assert main([*arguments, "--unknown", "error"]) == 2
    assert "user_id: got 1 unknown ('nobody'), expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "users", "message"),
    [
        ("models:/films@nobody", "1", "nobody not found.*films@champion"),
        ("models:/absent@champion", "1", "absent not found.*films@champion"),
        ("models:/films/99", "1", "version=99.*films@champion"),
        ("absent", "1", "expected models:/NAME@ALIAS"),
        ("models:/films@champion", " , ", "expected user ids"),
    ],
)
def test_wrong_questions_get_one_line_and_exit_code_2(model, users, message, registered, capsys):
    assert main(["recommend", "--model", model, "--users", users]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    (line,) = [line for line in lines if "error" in line]
    assert lines[-1] == line
    assert re.search(message, line)


def test_missing_registry_is_named_and_not_created(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no mlflow\.db"):
        load_model("models:/films@champion")
    assert list(tmp_path.iterdir()) == []


def test_visitors_get_the_list_of_the_user_whom_their_history_describes(catalogue, films):
    run = load_run(catalogue.stage2)
    items = [2, 7, 11]
    vector = reference_fold_in(run, items)
    _, item_vectors = all_vectors(run.recommender.eval(), run.features, run.dataset.num_users)
    modal_vectors = run.recommender.cold_items(run.features)
    request = pd.DataFrame({"history": [[run.dataset.item_ids[item] for item in items]]})
    for kind, table, allowed in (
        ("full", item_vectors, warm_items(run.dataset)),
        ("cold", modal_vectors, set(range(NUM_ITEMS))),
    ):
        answer = films.predict(request, params={"top_k": 5, "candidates": "all" if kind == "cold" else "warm"})
        scores = (vector @ table.detach().T)[None]
        assert lists_of(answer.assign(user_id="visitor")) == [expected_list(run, scores, 0, allowed - set(items), 5)]
        assert answer["user_id"].to_list() == [None] * 5


def reference_fold_in(run: FinishedRun, history: list[int]) -> torch.Tensor:
    """The user whom a history describes: normal equations with a constant column, user by user."""
    vectors = all_vectors(run.recommender.eval(), run.features, run.dataset.num_users)
    users, items = (table.detach() for table in vectors)
    modal_items = run.recommender.cold_items(run.features)
    train = run.dataset.interactions("train")
    centre = torch.stack([items[item] for item in train.items]).mean(dim=0)

    def inputs_of(taken: list[int], table: torch.Tensor) -> torch.Tensor:
        return sum(table[item] - centre for item in taken) / (len(taken) + PRIOR)

    inputs = torch.stack(
        [inputs_of(sorted(seen_items(run, user, "train")), items) for user in range(len(users))]
    ).double()
    spread = inputs - inputs.mean(dim=0)
    strength = PENALTY * spread.square().sum() / inputs.shape[1]
    rows = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    penalty = torch.diag(torch.tensor([strength] * inputs.shape[1] + [0.0])).double()
    weights = torch.linalg.solve(rows.T @ rows + penalty, rows.T @ users.double())
    vectors = torch.stack(
        [items[item] if item in warm_items(run.dataset) else modal_items[item].detach() for item in range(NUM_ITEMS)]
    )
    own = torch.cat([inputs_of(history, vectors).double(), torch.ones(1)])
    return (own @ weights).float()


def test_users_and_visitors_can_be_in_one_request(catalogue, films):
    run = load_run(catalogue.stage2)
    some = run.dataset.item_ids[3]
    request = pd.DataFrame([{"history": [some]}, {"user_id": "4"}, {"history": []}, {"user_id": "1"}])
    answer = films.predict(request, params={"top_k": 2})
    assert answer["row"].to_list() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert answer["user_id"].to_list() == [None, None, "4", "4", None, None, "1", "1"]
    alone = films.predict(pd.DataFrame({"user_id": ["4", "1"]}), params={"top_k": 2})
    assert answer["item_id"].to_list()[2:4] + answer["item_id"].to_list()[6:] == alone["item_id"].to_list()
    assert some not in answer["item_id"].to_list()[:2]


def test_new_items_are_scored_for_visitors_too(catalogue, films):
    run = load_run(catalogue.stage2)
    row = {"history": [run.dataset.item_ids[2]], "text": "a film", "image": in_base64(Image.new("RGB", (8, 8)), "PNG")}
    answer = films.predict(pd.DataFrame([row, row | {"history": [run.dataset.item_ids[9]]}]))
    assert np.isfinite(answer["score"]).all()
    assert answer["score"][0] != answer["score"][1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"history": ["nothing like it", "0"]},
            r"history: got 1 unknown \('nothing like it'\), expected some of the 24",
        ),
        ({"history": "12"}, "row 0: history: got str '12', expected a list of item ids"),
        ({"history": ["0"], "user_id": "1"}, "row 0: got both"),
        ({"history": None, "user_id": None}, "row 0: got neither"),
    ],
)
def test_bad_histories_get_one_clear_line(row, message, films):
    with pytest.raises(MlflowException, match=message):
        films.predict(pd.DataFrame([row]), params={"unknown": "error"})


def test_id_only_models_take_histories_of_the_items_that_they_were_trained_on(catalogue, registered):
    model, dataset = load_model("models:/ids@candidate"), load_run(catalogue.ids_only).dataset
    cold, warm = int(dataset.cold_items("cold_test")[0]), min(warm_items(dataset))
    assert len(model.predict(pd.DataFrame({"history": [[dataset.item_ids[warm]]]}), params={"top_k": 3})) == 3
    history = pd.DataFrame({"history": [[dataset.item_ids[cold], dataset.item_ids[warm]]]})
    with pytest.raises(MlflowException, match=r"was held out of training.*leave it out"):
        model.predict(history, params={"unknown": "error"})
    assert model.predict(history)["unknown_items"][0] == [dataset.item_ids[cold]]
