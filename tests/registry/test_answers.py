"""Registering and recommending with a real data set, a tiny real CLIP, and MLflow on SQLite."""

import base64
import io
import json
import random
import re
import shutil
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image
from safetensors.torch import load_file, save_file

from ptmrec_dist.cli import main
from ptmrec_dist.config import (
    EncoderConfig,
    FeaturesConfig,
    ModelConfig,
    PackConfig,
    PromptConfig,
    RecommendConfig,
    RegisterConfig,
    Stage1Config,
    TrackingConfig,
)
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import write_features
from ptmrec_dist.data.pack import pack
from ptmrec_dist.data.stream import ItemStream
from ptmrec_dist.distributed import join_world
from ptmrec_dist.encoders.backbone import load_backbone
from ptmrec_dist.encoders.features import encode_all, extract_features, reader_of
from ptmrec_dist.encoders.tuning import Encoder
from ptmrec_dist.errors import UserError
from ptmrec_dist.registry import load_model, recommend, register
from ptmrec_dist.serving import MAX_IMAGE_PIXELS
from ptmrec_dist.tracking import Tracker
from ptmrec_dist.training.loaded import LoadedRun, load_run
from ptmrec_dist.training.runs import ENCODER_FILE, RECOMMENDER_FILE, RunFolder
from ptmrec_dist.training.stage1 import train_stage1
from tests.test_tracking import empty_store, store  # noqa: F401
from tests.tiny_clip import write_tiny_clip

NUM_ITEMS, NUM_USERS = 24, 12
OFF = TrackingConfig(enabled=False)


@dataclass(frozen=True)
class Shop:
    root: Path
    shards: Path
    stage1: Path
    stage2: Path
    ids_only: Path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    shop = Shop(root, root / "shards", root / "a", root / "b", root / "c")
    draw_catalogue(root)
    write_tiny_clip(root / "clip")
    pack(
        PackConfig(
            items=root / "items.csv",
            interactions=root / "interactions.csv",
            out=shop.shards,
            split="cold_items",
            core=0,
            workers=1,
            num_shards=1,
        )
    )
    encoder = EncoderConfig(model=str(root / "clip"))
    extract_features(FeaturesConfig(shards=shop.shards, encoder=encoder, out=root / "features", device="cpu"))
    common = {"shards": shop.shards, "epochs": 0, "device": "cpu", "tracking": OFF, "model": ModelConfig(dim=8)}
    train_stage1(Stage1Config(out=shop.stage1, features=root / "features", recommender="vbpr", **common))
    train_stage1(Stage1Config(out=shop.ids_only, recommender="bpr", **common))
    write_stage2(shop)
    return shop


def draw_catalogue(root: Path) -> None:
    generator = random.Random(0)
    (root / "images").mkdir()
    items, taken = ["item_id,title,text,image"], ["user_id,item_id"]
    for item in range(NUM_ITEMS):
        pixels = np.random.default_rng(item).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(root / "images" / f"{item}.jpg")
        items.append(f"{item},Film {item},a film about the number {item},images/{item}.jpg")
    for user in range(NUM_USERS):
        taken += [f"{user},{item}" for item in generator.sample(range(NUM_ITEMS), 12)]
    (root / "items.csv").write_text("\n".join(items))
    (root / "interactions.csv").write_text("\n".join(taken))


def write_stage2(shop: Shop) -> None:
    """A run folder as stage 2 leaves it, with prompts that nobody trained."""
    start = load_run(shop.stage1)
    backbone = load_backbone(EncoderConfig(model=str(shop.root / "clip")))
    encoder = Encoder(backbone, ("image", "text"))
    encoder.tune("prompt", PromptConfig(length=2), torch.Generator().manual_seed(0))
    for tower_prompts in encoder.tuned_state().values():
        tower_prompts.normal_(generator=torch.Generator().manual_seed(1))
    run = RunFolder(shop.stage2, OFF)
    run.start()
    world = join_world("cpu")
    stream = ItemStream(start.dataset, 0, 1, 8, reader_of(encoder))
    tables = encode_all(encoder, stream, NUM_ITEMS, world)
    written = write_features(
        shop.stage2 / "features",
        {modality: table.numpy() for modality, table in tables.items()},
        data=start.dataset.fingerprint,
        encoder=backbone.fingerprint,
        model=str(shop.root / "clip"),
        pretrained=None,
    )
    save_file(encoder.tuned_state(), shop.stage2 / ENCODER_FILE, encoder.description)
    shutil.copy(shop.stage1 / RECOMMENDER_FILE, shop.stage2)
    record = replace(
        start.record,
        stage=2,
        features={"path": "moved", "fingerprint": written.fingerprint},
        stage1={"path": str(shop.stage1), "fingerprint": start.record.fingerprint},
        fingerprint="",
    )
    run.finish(record, {"validation": {"recall@20": 0.25}, "test": {"recall@20": 0.125}})


@pytest.fixture(scope="module")
def registered(shop: Shop, empty_store: Path) -> MlflowClient:  # noqa: F811
    """A store with stage 2 as films@champion and the ID-only run as ids@candidate."""
    folder = shop.root / "registry"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        register(RegisterConfig(run=shop.stage2, name="films", alias="champion"))
        register(RegisterConfig(run=shop.ids_only, name="ids"))
        yield MlflowClient(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture
def films(registered: MlflowClient) -> mlflow.pyfunc.PyFuncModel:
    return load_model("models:/films@champion")


def reference_scores(run: LoadedRun) -> tuple[torch.Tensor, torch.Tensor]:
    """Full and cold scores [U, I], pair by pair from the model's weights."""
    weights = load_file(run.folder / RECOMMENDER_FILE)
    users, items = weights["users.weight"], weights["items.weight"]
    maps = {name.split(".")[1]: value for name, value in weights.items() if name.startswith("maps.")}
    full, cold = torch.zeros(len(users), len(items)), torch.zeros(len(users), len(items))
    for item in range(len(items)):
        projected = sum(maps[modality] @ run.features[modality][item] for modality in ("image", "text"))
        ids = sum(
            weights[f"id_maps.{modality}.weight"] @ run.features[modality][item] for modality in ("image", "text")
        )
        for user in range(len(users)):
            modal = users[user, 8:] @ projected
            cold[user, item] = users[user, :8] @ ids / 2 + modal
            full[user, item] = users[user, :8] @ items[item] + modal
    return full, cold


def warm_items(dataset: Dataset) -> set[int]:
    cold = set(dataset.cold_items("cold_validation")) | set(dataset.cold_items("cold_test"))
    assert cold
    return set(range(NUM_ITEMS)) - cold


def expected_list(run: LoadedRun, scores: torch.Tensor, user: int, allowed: set[int], top_k: int) -> list[str]:
    ranked = sorted(allowed, key=lambda item: -scores[user, item].item())
    return [run.dataset.item_ids[item] for item in ranked[:top_k]]


def seen_items(run: LoadedRun, user: int) -> set[int]:
    train = run.dataset.interactions("train")
    return {int(item) for other, item in zip(train.users, train.items) if other == user}


def lists_of(answer: pd.DataFrame) -> list[list[str]]:
    return [group["item_id"].to_list() for _, group in answer.groupby("user_id", sort=False)]


def test_model_ranks_the_warm_items_that_a_user_has_not_seen(shop, films):
    run = load_run(shop.stage2)
    full, _ = reference_scores(run)
    ids = run.dataset.user_ids
    answer = films.predict(pd.DataFrame({"user_id": [ids[5], ids[0]]}), params={"top_k": 4})
    warm = warm_items(run.dataset)
    expected = [expected_list(run, full, user, warm - seen_items(run, user), 4) for user in (5, 0)]
    assert lists_of(answer) == expected
    assert answer["user_id"].to_list() == [ids[5]] * 4 + [ids[0]] * 4
    assert answer["rank"].to_list() == [1, 2, 3, 4] * 2
    place = run.dataset.item_ids.index(answer["item_id"][0])
    assert answer["title"][0] == run.dataset.titles[place]
    assert answer["score"][0] == pytest.approx(full[5, place].item(), abs=1e-5)


def test_seen_items_come_back_when_asked_for(shop, films):
    run = load_run(shop.stage2)
    full, _ = reference_scores(run)
    asked = pd.DataFrame({"user_id": run.dataset.user_ids[:3]})
    answer = films.predict(asked, params={"top_k": 100, "exclude_seen": False})
    warm = warm_items(run.dataset)
    assert lists_of(answer) == [expected_list(run, full, user, warm, 100) for user in range(3)]


def test_lists_with_cold_items_rank_everything_by_the_cold_score(shop, films):
    run = load_run(shop.stage2)
    _, cold = reference_scores(run)
    asked = pd.DataFrame({"user_id": run.dataset.user_ids[:2]})
    answer = films.predict(asked, params={"top_k": 100, "include_cold": True})
    everything = set(range(NUM_ITEMS))
    expected = [expected_list(run, cold, user, everything - seen_items(run, user), 100) for user in range(2)]
    assert lists_of(answer) == expected


def test_users_may_be_numbers_or_strings_and_unknown_ones_are_named(films):
    as_numbers = films.predict(pd.DataFrame({"user_id": [3, 1]}))
    as_strings = films.predict(pd.DataFrame({"user_id": ["3", "1"]}))
    pd.testing.assert_frame_equal(as_numbers, as_strings)
    with pytest.raises(MlflowException, match=r"2 unknown \('nobody', '99'\).* 12 users"):
        films.predict(pd.DataFrame({"user_id": ["1", "nobody", "99", "nobody"]}))


def test_new_items_are_scored_as_the_catalogue_would_score_the_same_picture_and_text(shop, films):
    run = load_run(shop.stage2)
    _, cold = reference_scores(run)
    dataset = run.dataset
    item = int(dataset.cold_items("cold_test")[0])
    with tarfile.open(dataset.shard_paths()[0]) as tar:
        picture, text = (tar.extractfile(f"{item:09d}.{kind}").read() for kind in ("jpg", "txt"))
    row = {"image": base64.b64encode(picture).decode(), "text": text.decode()}
    other = row | {"text": "something else"}
    users = [dataset.user_ids[user] for user in (4, 2, 4)]
    asked = pd.DataFrame([{"user_id": users[0]} | row, {"user_id": users[1]} | row, {"user_id": users[2]} | other])
    answer = films.predict(asked)
    assert answer["user_id"].to_list() == users
    expected = [cold[4, item].item(), cold[2, item].item()]
    assert answer["score"].to_list()[:2] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert answer["score"][2] != pytest.approx(expected[0], rel=1e-3)


@pytest.mark.parametrize(("recommender", "modalities"), [("vbpr", "image"), ("vbpr", "text"), ("freedom", "both")])
def test_new_items_need_only_what_the_recommender_reads(recommender, modalities, shop, registered, tmp_path):
    settings = {"recommender": recommender, "modalities": modalities, "model": ModelConfig(dim=8)}
    train_stage1(
        Stage1Config(
            out=tmp_path / "run",
            shards=shop.shards,
            features=shop.root / "features",
            epochs=0,
            device="cpu",
            tracking=OFF,
            **settings,
        )
    )
    register(RegisterConfig(run=tmp_path / "run", name=f"{recommender}-{modalities}"))
    run = load_run(tmp_path / "run")
    users, items = run.recommender.eval().cold_representations(run.features, torch.arange(NUM_ITEMS))
    with tarfile.open(run.dataset.shard_paths()[0]) as tar:
        picture, text = (tar.extractfile(f"{7:09d}.{kind}").read() for kind in ("jpg", "txt"))
    row = {"image": base64.b64encode(picture).decode(), "text": text.decode()}
    read = row if modalities == "both" else {modalities: row[modalities]}
    asked = pd.DataFrame([{"user_id": run.dataset.user_ids[3]} | read])
    answer = load_model(f"models:/{recommender}-{modalities}@candidate").predict(asked)
    assert answer["score"][0] == pytest.approx((users[3] @ items[7]).item(), rel=1e-3, abs=1e-6)


def in_base64(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"text": "a film"}, "no column image"),
        ({"text": "a film", "image": "https://example.org/a.jpg"}, "cannot be decoded"),
        ({"text": "a film", "image": in_base64(Image.new("RGB", (8, 8)), "GIF")}, "expected a JPEG or PNG"),
        ({"text": "a film", "image": in_base64(Image.new("1", (MAX_IMAGE_PIXELS // 4, 5)), "PNG")}, "pixels"),
        ({"text": "a film", "image": "A" * 20_000_000}, "20000000 characters"),
        ({"text": "", "image": in_base64(Image.new("RGB", (8, 8)), "PNG")}, "text: a row has none"),
    ],
)
def test_bad_new_items_get_one_clear_line(item, message, films):
    with pytest.raises(MlflowException, match=message):
        films.predict(pd.DataFrame([{"user_id": "1"} | item]))


def test_id_only_models_recommend_but_take_no_new_items(shop, registered):
    model = load_model("models:/ids@candidate")
    weights = load_file(shop.ids_only / RECOMMENDER_FILE)
    run = load_run(shop.ids_only)
    scores = weights["users.weight"] @ weights["items.weight"].T
    answer = model.predict(pd.DataFrame({"user_id": run.dataset.user_ids[:1]}), params={"top_k": 3})
    assert lists_of(answer) == [expected_list(run, scores, 0, warm_items(run.dataset) - seen_items(run, 0), 3)]
    with pytest.raises(MlflowException, match="takes none"):
        model.predict(pd.DataFrame({"user_id": ["1"], "text": ["a film"]}))
    with pytest.raises(MlflowException, match="include_cold"):
        model.predict(pd.DataFrame({"user_id": ["1"]}), params={"include_cold": True})


def test_registered_model_has_no_pickle_and_stands_alone(shop, registered, monkeypatch, tmp_path):
    version = registered.get_model_version_by_alias("films", "champion")
    (model,) = (shop.root / "registry" / "mlartifacts" / "models").glob(f"*{version.source.split('-')[-1]}*")
    files = [path for path in model.rglob("*") if path.is_file()]
    binary = {path.suffix for path in files if b"\0" in path.read_bytes()}
    assert binary == {".safetensors", ".parquet"}
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"}]
    assert {path.name for path in files} >= {"open_clip_model.safetensors", "encoder.safetensors", "MLmodel"}
    for folder in (shop.shards, shop.root / "clip", shop.root / "features"):
        folder.rename(folder.with_suffix(".away"))
    try:
        picture = in_base64(Image.new("RGB", (8, 8), "red"), "PNG")
        answer = load_model(str(model / "artifacts")).predict(
            pd.DataFrame({"user_id": ["1"], "image": [picture], "text": ["a film"]})
        )
        assert np.isfinite(answer["score"]).all()
    finally:
        for folder in (shop.shards, shop.root / "clip", shop.root / "features"):
            folder.with_suffix(".away").rename(folder)


def test_version_carries_its_lineage(shop, registered):
    tags = registered.get_model_version_by_alias("films", "champion").tags
    record = load_run(shop.stage2).record
    assert tags["run"] == record.fingerprint
    assert tags["data"] == Dataset(shop.shards).fingerprint
    assert tags["features"] == record.features["fingerprint"]
    assert tags["stage1"] == load_run(shop.stage1).record.fingerprint
    assert tags["encoder"] == load_backbone(EncoderConfig(model=str(shop.root / "clip"))).fingerprint
    assert tags["recommender"] == "vbpr"
    assert tags["validation/recall_at_20"] == "0.25"


def test_version_belongs_to_the_mlflow_run_that_trained_it(shop, registered, tmp_path):
    with Tracker.start(TrackingConfig(), name="a", params={}, tags={}, active=True) as tracker:
        pass
    shutil.copytree(shop.stage1, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"mlflow_run": tracker.run_id}))
    ended = registered.get_run(tracker.run_id).info.end_time
    register(RegisterConfig(run=tmp_path / "run", name="tracked"))
    version = registered.get_model_version_by_alias("tracked", "candidate")
    assert version.run_id == tracker.run_id
    assert registered.get_run(tracker.run_id).info.end_time == ended


def test_alias_moves_to_the_new_version(shop, registered):
    before = registered.get_model_version_by_alias("films", "champion").version
    register(RegisterConfig(run=shop.stage1, name="films", alias="moving"))
    register(RegisterConfig(run=shop.stage2, name="films", alias="moving"))
    assert int(registered.get_model_version_by_alias("films", "moving").version) == int(before) + 2
    assert registered.get_model_version_by_alias("films", "champion").version == before


def test_recommend_prints_titles_for_each_user(shop, registered, capsys):
    recommend(RecommendConfig(model="models:/films@champion", users="1, 2", top_k=3))
    printed = capsys.readouterr().out
    answer = load_model("models:/films@champion").predict(pd.DataFrame({"user_id": ["1", "2"]}), params={"top_k": 3})
    assert len(answer) == 6
    assert all(title in printed for title in answer["title"])


@pytest.mark.parametrize(
    ("model", "users", "message"),
    [
        ("models:/films@nobody", "1", "nobody not found.*films@champion"),
        ("models:/absent@champion", "1", "absent not found.*films@champion"),
        ("models:/films/99", "1", "version=99.*films@champion"),
        ("absent", "1", "expected models:/NAME@ALIAS"),
        ("models:/films@champion", "1,nobody", "unknown.*'nobody'"),
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


@pytest.mark.parametrize(("name", "alias"), [("a/b", "x"), ("a", "latest"), ("a", "v1"), ("a", "x y"), ("", "x")])
def test_names_that_mlflow_refuses_are_refused_before_anything_is_written(name, alias, shop, store):  # noqa: F811
    with pytest.raises(UserError, match="expected"):
        register(RegisterConfig(run=shop.stage2, name=name, alias=alias))
    assert store.search_registered_models() == []


def test_run_of_other_data_features_or_encoder_is_refused(shop, store, tmp_path):  # noqa: F811
    record = json.loads((shop.stage2 / "run.json").read_text())
    write_tiny_clip(tmp_path / "other-clip", seed=1)
    changes = {
        "data": record["data"] | {"fingerprint": "0" * 64},
        "features": record["features"] | {"fingerprint": "0" * 64},
        "encoder": record["encoder"] | {"model": str(tmp_path / "other-clip")},
    }
    for key, value in changes.items():
        run = tmp_path / key
        shutil.copytree(shop.stage2, run)
        (run / "run.json").write_text(json.dumps(record | {key: value}))
        with pytest.raises(UserError) as raised:
            register(RegisterConfig(run=run, name="films"))
        assert record[key]["fingerprint"][:12] in str(raised.value)
        if key != "encoder":
            assert "0" * 12 in str(raised.value)
    assert store.search_registered_models() == []


def test_model_with_weights_that_are_not_finite_is_not_registered(shop, store, tmp_path):  # noqa: F811
    shutil.copytree(shop.ids_only, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / RECOMMENDER_FILE)
    weights["users.weight"][-1, 0] = torch.nan
    save_file(weights, tmp_path / "broken" / RECOMMENDER_FILE)
    with pytest.raises(UserError, match="NaN"):
        register(RegisterConfig(run=tmp_path / "broken", name="films"))
    assert store.search_registered_models() == []
