"""Feature extraction: the same on any number of ranks, and nothing else overwritten."""

import itertools
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptmrec_dist.config import EncoderConfig, FeaturesConfig
from ptmrec_dist.data.dataset import Dataset
from ptmrec_dist.data.feature_store import open_features, read_feature_manifest
from ptmrec_dist.encoders.features import extract_features
from ptmrec_dist.errors import UserError
from tests.conftest import Project
from tests.ranks import command_on_rank, exit_codes_on_ranks, run_on_ranks


def _config(project: Project, out: Path) -> FeaturesConfig:
    return FeaturesConfig(
        shards=project.shards, out=out, encoder=EncoderConfig(model=str(project.clip)), batch_size=7, device="cpu"
    )


@pytest.mark.slow
def test_ranks_write_what_one_process_writes(tiny_project: Project, tmp_path: Path) -> None:
    run_on_ranks(3, extract_features, _config(tiny_project, tmp_path / "features"))
    dataset = Dataset(tiny_project.shards)
    alone = open_features(tiny_project.features, dataset.fingerprint, dataset.num_items)
    ranks = open_features(tmp_path / "features", dataset.fingerprint, dataset.num_items)
    for modality, table in alone.tables.items():
        np.testing.assert_allclose(ranks.tables[modality], table, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
    assert ranks.manifest.encoder == alone.manifest.encoder


def test_a_folder_of_something_else_is_left_alone(tiny_project: Project, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not a features folder; choose another --out"):
        extract_features(_config(tiny_project, tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_encoder_that_cannot_be_loaded_leaves_old_features_alone(tiny_project: Project, tmp_path: Path) -> None:
    config = _config(tiny_project, tmp_path / "features")
    extract_features(config)
    before = (tmp_path / "features" / "image.npy").read_bytes()
    with pytest.raises(UserError, match="neither a folder nor"):
        extract_features(replace(config, encoder=EncoderConfig(model="nothing")))
    assert (tmp_path / "features" / "image.npy").read_bytes() == before


def test_features_of_another_split_of_the_same_items_are_copied_and_no_others(
    tiny_project: Project, tiny_clip: Path, tmp_path: Path
) -> None:
    from ptmrec_dist.config import PackConfig
    from ptmrec_dist.data.packing.pack import pack
    from tests.tiny_clip import write_tiny_clip

    def packed(folder: Path, seed: int, core: int) -> FeaturesConfig:
        tables = {name: tiny_project.source / f"{name}.csv" for name in ("items", "interactions")}
        pack(PackConfig(**tables, out=folder, split="cold_items", core=core, num_shards=3, workers=1, seed=seed))
        return replace(_config(tiny_project, tmp_path / f"copy-of-{folder.name}"), shards=folder)

    extract_features(_config(tiny_project, tmp_path / "first"))
    other = packed(tmp_path / "other", 5, 2)
    extract_features(replace(other, reuse=tmp_path / "first"))
    extract_features(replace(other, out=tmp_path / "computed"))
    for name in ("image.npy", "text.npy"):
        copied, computed = (np.load(folder / name) for folder in (other.out, tmp_path / "computed"))
        np.testing.assert_allclose(copied, computed, rtol=1e-4, atol=1e-6)
    dataset = Dataset(other.shards)
    assert open_features(other.out, dataset.fingerprint, dataset.num_items).manifest.encoder is not None
    fewer = packed(tmp_path / "fewer", 0, 6)
    assert Dataset(fewer.shards).num_items < dataset.num_items
    strange = replace(other, encoder=EncoderConfig(model=str(write_tiny_clip(tmp_path / "clip", seed=9))))
    for config, what in ((fewer, "images and texts"), (strange, "encoder")):
        with pytest.raises(UserError, match=rf"reuse: .* was made from {what} [0-9a-f]{{12}}, expected [0-9a-f]{{12}}"):
            extract_features(replace(config, out=tmp_path / "refused", reuse=tmp_path / "first"))
        assert not (tmp_path / "refused").exists()


def test_features_are_reused_in_the_precision_that_is_recorded_alone(
    tiny_project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coarse = replace(_config(tiny_project, tmp_path / "coarse"), precision="bf16")
    extract_features(coarse)
    assert read_feature_manifest(coarse.out).precision == "bf16"
    fine = replace(coarse, precision="fp32", out=tmp_path / "copy", reuse=coarse.out)
    with pytest.raises(
        UserError, match=r"precision: got fp32, but .*coarse was computed in bf16; give --precision bf16, or"
    ):
        extract_features(fine)
    assert not fine.out.exists()
    extract_features(replace(fine, precision="bf16"))
    assert read_feature_manifest(fine.out) == read_feature_manifest(coarse.out)
    assert not caplog.records
    manifest = json.loads((coarse.out / "manifest.json").read_text())
    del manifest["precision"]  # as earlier versions wrote it
    (coarse.out / "manifest.json").write_text(json.dumps(manifest))
    extract_features(fine)
    assert f"the precision of {coarse.out} is unknown" in caplog.text
    assert read_feature_manifest(fine.out).precision is None


def test_shards_without_pictures_are_refused(tiny_project: Project, tmp_path: Path) -> None:
    from ptmrec_dist.config import PackConfig
    from ptmrec_dist.data.packing.pack import pack

    pack(PackConfig(interactions=tiny_project.source / "interactions.csv", out=tmp_path / "shards", core=0))
    config = replace(_config(tiny_project, tmp_path / "features"), shards=tmp_path / "shards")
    with pytest.raises(UserError, match="has no images and texts; pack it again with --items"):
        extract_features(config)


def _with_a_rank_that_dies(arguments: list[str], logs: Path) -> None:
    from ptmrec_dist.encoders.encoder import Encoder

    encode, calls = Encoder.encode, itertools.count()

    def dying(self: Encoder, *inputs: Any, **named: Any) -> dict[str, Any]:
        if os.environ["RANK"] == "1" and next(calls) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, *inputs, **named)

    Encoder.encode = dying  # type: ignore[method-assign]
    command_on_rank("features", arguments, logs)


@pytest.mark.slow
def test_a_lost_rank_ends_the_other_with_its_name_and_old_features_stay(tiny_project: Project, tmp_path: Path) -> None:
    config = _config(tiny_project, tmp_path / "features")
    extract_features(config)
    before = (tmp_path / "features" / "image.npy").read_bytes()
    arguments = [
        *("--shards", str(tiny_project.shards), "--encoder.model", str(tiny_project.clip), "--out", str(config.out)),
        *("--batch_size", "4", "--device", "cpu", "--timeout", "30"),
    ]
    assert exit_codes_on_ranks(2, _with_a_rank_that_dies, arguments, tmp_path) == [3, -9]
    log = (tmp_path / "rank0").read_text()
    assert "rank 1 sends no heartbeat" in log
    assert "run the same command again" in log
    assert "Traceback" not in log
    assert (tmp_path / "features" / "image.npy").read_bytes() == before
