"""`ptmrec add-items`: new items are ranked and scored as the encoder sees them, and everything else stays as it was."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from ptmrec_dist.cli import main
from ptmrec_dist.config import EncoderConfig, FeaturesConfig, PackConfig, RegisterConfig, Stage1Config
from ptmrec_dist.config.recommenders import VBPRConfig
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.registry import load_model
from ptmrec_dist.registry.registering import register
from ptmrec_dist.training.stage1 import train_stage1
from tests.registry.films import OFF, Catalogue, in_base64, make_catalogue

HEADER = "item_id,title,text,image"


def _write_new(folder: Path) -> Path:
    """Two good items, one that the model has, and three that are bad."""
    folder.mkdir()
    for item in ("n1", "n2"):
        pixels = np.random.default_rng(len(item)).integers(0, 256, (30, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{item}.png")
    (folder / "n4.png").write_bytes((folder / "n1.png").read_bytes()[:60])
    rows = ["n1,New one,a film about a new number,n1.png", "n2,New two,another film,n2.png", "3,Film 3,again,n1.png"]
    rows += ["n3,No text,,n1.png", "n4,Broken,a film,n4.png", "n5,Absent,a film,absent.png"]
    (folder / "new.csv").write_text("\n".join([HEADER, *rows]))
    return folder / "new.csv"


@pytest.mark.slow
def test_added_items_are_recommended_with_the_score_of_new_ones_and_the_rest_stays(
    catalogue: Catalogue, registry: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(RegisterConfig(run=catalogue.stage2, name="growing", alias="champion"))
    before, table = load_model("models:/growing@champion"), _write_new(tmp_path / "new")
    number = str(registry.get_model_version_by_alias("growing", "champion").version)
    named = ("--columns.image", "{item_id}.png")
    assert main(["add-items", "--model", "models:/growing@champion", "--items", str(table), *named]) == 0
    printed = capsys.readouterr().out
    assert "6 items read, 1 left out: empty text" in printed
    assert "1 left out: already in the model" in printed
    assert printed.count("item 'n4'") == printed.count("item 'n5'") == 1
    assert "2 kept" in printed
    after = load_model("models:/growing@champion")
    made = registry.get_model_version_by_alias("growing", "champion")
    assert (made.tags["items_added_to"], made.tags["items_added"]) == (number, "2")

    users = pd.DataFrame({"user_id": ["0", "5"]})
    pd.testing.assert_frame_equal(after.predict(users, {"top_k": 20}), before.predict(users, {"top_k": 20}))
    found = after.predict(users, {"top_k": 100, "candidates": "cold"}).set_index(["user_id", "item_id"])
    assert not found["warm"].any()
    for item, text in (("n1", "a film about a new number"), ("n2", "another film")):
        image = in_base64(Image.open(tmp_path / "new" / f"{item}.png"), "PNG")
        request = users.assign(image=image, text=text)
        expected = before.predict(request).set_index("user_id")["score"]
        for user in ("0", "5"):
            assert found.loc[(user, item), "score"] == pytest.approx(expected[user], abs=1e-5)
    visitor = after.predict(
        pd.DataFrame({"history": [["n1"]]}), {"unknown": "error", "candidates": "all", "top_k": 100}
    )
    assert "n1" not in visitor["item_id"].to_list()

    assert main(["rollback", "--name", "growing"]) == 0
    assert str(registry.get_model_version_by_alias("growing", "champion").version) == number


@pytest.mark.slow
def test_what_cannot_be_added_is_one_line_and_registers_nothing(
    catalogue: Catalogue, registry: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = _write_new(tmp_path / "new")
    only_known = tmp_path / "new" / "known.csv"
    only_known.write_text(f"{HEADER}\n3,Film 3,again,n1.png")
    for model, items, options, message in (
        (
            "models:/ids@candidate",
            table,
            (),
            "model: it takes no new items; expected one that reads features of an encoder",
        ),
        ("models:/films@champion", only_known, (), "known.csv has no new item for models:/films@champion"),
        ("models:/films@champion", table, ("--on_error", "fail"), "bad input: items: 1 empty text"),
        ("models:/films@champion", tmp_path / "no.csv", (), "no.csv"),
        ("films", table, (), "model: got 'films', expected models:/NAME@ALIAS or models:/NAME/VERSION"),
    ):
        versions = len(registry.search_model_versions())
        assert main(["add-items", "--model", model, "--items", str(items), *options]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert message in line
        assert len(registry.search_model_versions()) == versions


def _register_with_incomplete_items(root: Path, clip: Path) -> None:
    """A model of films of which some lack an image (film 1) and some a text (film 2)."""
    make_catalogue(root)
    films = pd.read_csv(root / "items.csv", dtype=str)
    films.loc[films["item_id"].isin(["1", "5"]), "image"] = ""
    films.loc[films["item_id"] == "2", "text"] = ""
    films.to_csv(root / "items.csv", index=False)
    pack(
        PackConfig(
            items=root / "items.csv",
            interactions=root / "interactions.csv",
            out=root / "shards",
            core=0,
            workers=1,
            num_shards=1,
            missing="keep",
        )
    )
    encoder = EncoderConfig(model=str(clip))
    extract_features(FeaturesConfig(shards=root / "shards", encoder=encoder, out=root / "features", device="cpu"))
    settings = {"epochs": 0, "device": "cpu", "tracking": OFF, "model": VBPRConfig(dim=8)}
    train_stage1(Stage1Config(shards=root / "shards", features=root / "features", out=root / "run", **settings))
    register(RegisterConfig(run=root / "run", name="incomplete", alias="champion"))


def test_a_new_item_that_lacks_what_items_of_the_data_lack_is_ranked_as_they_are(
    empty_registry: MlflowClient, tmp_path: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _register_with_incomplete_items(tmp_path, tiny_clip)
    rows = [
        "n1,No image,a film about the number 1,",
        "n2,No text,,images/2.jpg",
        "n3,Neither,,",
        "n4,Gone,a film about the number 1,x.jpg",
        "n5,Gone and no text,,y.jpg",
        "n6,Gone,a film about the number 1,z.jpg",
        "n6,Whole,a film about the number 2,images/2.jpg",
    ]
    (tmp_path / "new.csv").write_text("\n".join([HEADER, *rows]))
    capsys.readouterr()
    assert main(["add-items", "--model", "models:/incomplete@champion", "--items", str(tmp_path / "new.csv")]) == 0
    printed = capsys.readouterr().out
    assert "1 left out: neither text nor image (row 3: item 'n3')" in printed
    assert "1 left out: image file is missing (row 5: item 'n5', image 'y.jpg': no such file; looked for " in printed
    assert "1 left out: duplicate item id (row 6: item 'n6')" in printed
    lacking = ("no image path", "image file is missing", "empty text")
    assert "4 kept, " + ", ".join(f"1 of them with: {reason}" for reason in lacking) in printed
    users = pd.DataFrame({"user_id": ["0", "5"]})
    wanted = {"top_k": 5, "candidates": "items", "items": ["n1", "n2", "n4", "1", "2"], "exclude_seen": False}
    model = load_model("models:/incomplete@champion")
    found = model.predict(users, wanted).set_index(["user_id", "item_id"])["score"]
    for user in ("0", "5"):
        for new, same in (("n1", "1"), ("n2", "2"), ("n4", "1")):
            assert found[user, new] == pytest.approx(found[user, same], abs=1e-5)
        assert found[user, "1"] != pytest.approx(found[user, "2"], abs=1e-3)
    image = in_base64(Image.open(tmp_path / "images" / "2.jpg"), "PNG")
    for request, same in (
        (users.assign(text="a film about the number 1"), "1"),
        (users.assign(text="a film about the number 1", image=[None, " "]), "1"),
        (users.assign(image=image), "2"),
    ):
        scores = model.predict(request).set_index("user_id")["score"]
        assert scores.to_dict() == pytest.approx({user: found[user, same] for user in ("0", "5")}, abs=1e-5)
    with pytest.raises(MlflowException, match="row 1: got none of image, text, expected one or more of a new item"):
        model.predict(users.assign(text=["a film", ""], image=None))
    _refuse_where_all_or_any_are_strict(tmp_path, capsys)


def _refuse_where_all_or_any_are_strict(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No image at all that can be read, or --on_error fail: what cannot be read is then a mistake."""
    (root / "gone.csv").write_text(f"{HEADER}\nn6,Gone,a film,x.jpg\n")
    added = ["add-items", "--model", "models:/incomplete@champion", "--items"]
    assert main([*added, str(root / "gone.csv")]) == 2
    assert "has no new item" in capsys.readouterr().err
    rows = (root / "new.csv").read_text().replace("n", "m")
    (root / "new.csv").write_text(HEADER + rows[len(HEADER) :])
    assert main([*added, str(root / "new.csv"), "--on_error", "fail"]) == 2
    assert "3 image file is missing" in capsys.readouterr().err


def test_images_of_new_items_are_left_alone_by_a_model_that_reads_texts(
    empty_registry: MlflowClient, tmp_path: Path, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _register_with_incomplete_items(tmp_path, tiny_clip)
    settings = {"epochs": 0, "device": "cpu", "tracking": OFF, "model": VBPRConfig(dim=8), "modalities": "text"}
    train_stage1(
        Stage1Config(shards=tmp_path / "shards", features=tmp_path / "features", out=tmp_path / "t", **settings)
    )
    register(RegisterConfig(run=tmp_path / "t", name="texts", alias="champion"))
    rows = [
        "n1,,a film,https://example.org/1.jpg",
        "n2,,another film,../2.jpg",
        "n2,,a third film,",
        "n3,,,images/2.jpg",
    ]
    (tmp_path / "new.csv").write_text("\n".join([HEADER, *rows]))
    capsys.readouterr()
    assert main(["add-items", "--model", "models:/texts@champion", "--items", str(tmp_path / "new.csv")]) == 0
    printed = capsys.readouterr().out
    left_out = ("empty text (row 4: item 'n3')", "duplicate item id (row 3: item 'n2')")
    assert ", ".join(["4 items read", *(f"1 left out: {reason}" for reason in left_out), "2 kept\n"]) in printed
