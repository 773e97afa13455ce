"""The generated catalogue: reproducible, complete, and with captions that omit some of what users prefer."""

from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from ptmrec_dist.data.synthetic.catalogue import generate_catalogue, generate_pairs


def _catalogue(folder: Path, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    generate_catalogue(folder, num_items=30, num_users=20, seed=seed)
    return pl.read_csv(folder / "items.csv"), pl.read_csv(folder / "interactions.csv")


def test_a_catalogue_is_complete(tmp_path: Path) -> None:
    items, interactions = _catalogue(tmp_path)
    assert items.height == items["item_id"].n_unique() == 30
    assert set(interactions["item_id"]) <= set(items["item_id"])
    assert interactions["user_id"].n_unique() == 20
    assert interactions.select("user_id", "item_id").is_duplicated().sum() == 0
    for path in items["image"]:
        with Image.open(tmp_path / path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels.std() > 10, "a picture that shows nothing"


def test_one_seed_generates_one_catalogue(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _catalogue(tmp_path / name, seed)
    files = {name: {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()} for name in "abc"}
    assert files["a"] == files["b"]
    assert files["a"]["interactions.csv"] != files["c"]["interactions.csv"]


def test_captions_name_kinds_and_colours_and_never_patterns_or_scenes(tmp_path: Path) -> None:
    items, _ = _catalogue(tmp_path)
    words = " ".join(items["text"]).lower()
    for hidden in ("strip", "dot", "check", "wave", "zigzag", "pattern", "scene", "background"):
        assert hidden not in words


def test_pairs_have_the_requested_size_and_captions_that_differ() -> None:
    pictures, captions = generate_pairs(12, size=32, seed=0)
    assert pictures.shape == (12, 3, 32, 32)
    assert pictures.dtype == np.uint8
    assert len(captions) == 12
    assert len(set(captions)) > 3
