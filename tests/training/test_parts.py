"""Transfer of parts between runs: which tensors are taken over, new and trained, for every setting."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ptmrec_dist.config import JointConfig, LastNConfig, PromptConfig, Stage2Config, TuningConfig, recommender_config
from ptmrec_dist.encoders.encoder import Encoder
from ptmrec_dist.encoders.sources.loading import load_backbone_of
from ptmrec_dist.errors import UserError
from ptmrec_dist.training import tune
from ptmrec_dist.training.joint import train_joint
from ptmrec_dist.training.parts import PARTS
from ptmrec_dist.training.records import read_record
from ptmrec_dist.training.stage2 import train_stage2
from tests.conftest import UNTRACKED, Project

SIZES = {"dim": 8, "length": 5, "fusion_heads": 2}
TUNED = TuningConfig(method="last_n", settings=LastNConfig(n=1))


def _config(project: Project, out: Path, **changes: Any) -> JointConfig:
    settings: dict[str, Any] = {
        "shards": project.shards,
        "features": project.features,
        "out": out,
        "recommender": "pmmrec",
        "model": recommender_config("pmmrec", **SIZES),
        "pretraining": "off",
        "tuning": TUNED,
        "epochs": 0,
        "batch_size": 60,
        "seed": 3,
        "device": "cpu",
        "tracking": UNTRACKED,
    }
    return JointConfig(**(settings | changes))


@pytest.fixture(scope="module")
def source(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was pre-trained with all losses, in which every tensor has moved."""
    out = tmp_path_factory.mktemp("source") / "run"
    train_joint(_config(tiny_project, out, epochs=1, seed=0, pretraining="on"))
    return out


@pytest.fixture(scope="module")
def fresh(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs from scratch, before any step, by the modalities that are read."""
    root = tmp_path_factory.mktemp("fresh")

    def run(modalities: str) -> Path:
        train_joint(_config(tiny_project, root / modalities, modalities=modalities))
        return root / modalities

    return run


def _part(name: str) -> str:
    for part in ("text", "image"):
        if name.startswith(f"fusion.projections.{part}."):
            return part
    return {"fusion": "fusion", "transformer": "user"}[name.split(".")[0]]


def test_a_transfer_turns_the_losses_of_pre_training_off_unless_they_are_asked_for(tmp_path: Path) -> None:
    def losses(**settings: Any) -> set[str]:
        given = {"shards": tmp_path, "out": tmp_path, "features": tmp_path, "recommender": "pmmrec", **settings}
        model = JointConfig(**given).model
        return {getattr(model, name) for name in ("contrast", "nid", "rcl")}

    transfer = {"transfer": "full", "transfer_from": tmp_path}
    assert losses() == losses(**transfer, pretraining="on") == {"nicl", "softmax", "dot"}
    assert losses(**transfer) == losses(pretraining="off") == {"none"}
    with pytest.raises(UserError, match="pretraining: got 'off', expected auto with morec"):
        losses(recommender="morec", pretraining="off")
    with pytest.raises(
        UserError, match="tokens: got False, expected the default with morec, which reads no tokens; leave it"
    ):
        losses(recommender="morec", tokens=False)


@pytest.mark.slow
@pytest.mark.parametrize("transfer", PARTS)
def test_a_transfer_takes_over_exactly_its_parts(
    tiny_project: Project,
    tmp_path: Path,
    source: Path,
    fresh: Callable[[str], Path],
    transfer: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = transfer if transfer in ("text", "image") else "auto"
    train_joint(_config(tiny_project, tmp_path / "run", transfer=transfer, transfer_from=source))
    there, new, found = (
        load_file(folder / "recommender.safetensors") for folder in (source, fresh(alone), tmp_path / "run")
    )
    assert found.keys() == new.keys() <= there.keys()
    assert there.keys() - found.keys() >= {"noise_classifier.weight", "noise_classifier.bias"}
    taken = {name for name in found if _part(name) in PARTS[transfer]}
    for name, value in found.items():
        assert torch.equal(value, (there if name in taken else new)[name]), name
        if name.endswith("weight") and "norm" not in name:  # norms start alike
            assert not torch.equal(there[name], new[name]), name
    assert f"took over {len(taken)} of {len(found)} tensors" in capsys.readouterr().out
    modalities = [alone] if alone != "auto" else ["image", "text"]
    assert read_record(tmp_path / "run").modalities == modalities
    _assert_towers_are_of(source if transfer != "user" else fresh(alone), tmp_path / "run", modalities)


def _assert_towers_are_of(expected: Path, run: Path, modalities: list[str]) -> None:
    """With their last block as it was left, which is also what is trained on."""
    made = read_record(run).encoder
    assert made is not None
    encoder = Encoder(load_backbone_of(made), tuple(modalities))
    tuned, wanted = load_file(run / "encoder.safetensors"), load_file(expected / "encoder.safetensors")
    assert tuned
    assert tuned.keys() <= wanted.keys()
    here = dict(encoder.named_parameters())
    for name, value in tuned.items():
        assert torch.equal(value, wanted[name]), name
        assert torch.equal(here[name], value), name


@pytest.mark.slow
def test_stored_features_are_read_where_neither_run_tunes_the_encoder(
    tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    morec = {"recommender": "morec", "model": recommender_config("morec", dim=8, length=5), "pretraining": "auto"}
    monkeypatch.setattr(tune, "load_backbone_of", lambda made: pytest.fail("the encoder was loaded"))
    for name, settings in (("morec", morec), ("pmmrec", {"tokens": False})):
        frozen: dict[str, Any] = {**settings, "tuning": TuningConfig(method="none")}
        there = tmp_path / name
        train_joint(_config(tiny_project, there, **frozen))
        for transfer in ("full", "user", "text"):
            run = tmp_path / f"{name}-{transfer}"
            train_joint(_config(tiny_project, run, **frozen, transfer=transfer, transfer_from=there))
            assert (run / "metrics.json").is_file()


@pytest.mark.slow
def test_a_run_that_took_parts_over_trains_them_and_is_bound_to_its_source(
    tiny_project: Project, tmp_path: Path, source: Path
) -> None:
    settings: dict[str, Any] = {"transfer": "full", "epochs": 1, "keep": "last"}
    train_joint(_config(tiny_project, tmp_path / "run", transfer_from=source, **settings))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["source"]["fingerprint"] == read_record(source).fingerprint
    for file in ("recommender.safetensors", "encoder.safetensors"):
        before, after = load_file(source / file), load_file(tmp_path / "run" / file)
        moved = [name for name, value in after.items() if not torch.equal(value, before[name])]
        assert len(moved) == len(after)
    with pytest.raises(UserError, match="was started with"):
        train_joint(_config(tiny_project, tmp_path / "run", transfer_from=tmp_path / "run", **settings))


@pytest.mark.slow
def test_parts_that_do_not_fit_are_refused_before_anything_is_written(
    tiny_project: Project, tmp_path: Path, source: Path
) -> None:
    wider, longer = (recommender_config("pmmrec", **(SIZES | sizes)) for sizes in ({"dim": 16}, {"length": 9}))
    vbpr = {"recommender": "vbpr", "model": recommender_config("vbpr"), "pretraining": "auto"}
    morec = {"recommender": "morec", "model": recommender_config("morec", dim=8, length=5), "pretraining": "auto"}
    for changes, message in (
        ({"model": wider}, r"transfer: fusion\.block\.linear1\.bias is \(32,\) in .* and \(64,\) here"),
        ({"model": longer}, r"transfer: transformer\.positions_LD is \(5, 8\) in .* and \(9, 8\) here"),
        (morec, r"transfer_from: .* is a run of pmmrec, expected one of morec"),
        ({"transfer_from": tmp_path}, "is not a run folder"),
        ({"transfer_from": None}, "transfer_from: got none, expected the run that --transfer full reads"),
        ({"transfer": "none"}, r"transfer_from: got .*, expected no run without --transfer"),
        ({"transfer": "text", "modalities": "image"}, "modalities: got 'image', expected text"),
        (vbpr, "transfer: got 'full', expected none with vbpr"),
    ):
        with pytest.raises(UserError, match=message):
            train_joint(
                _config(tiny_project, tmp_path / "run", **({"transfer": "full", "transfer_from": source} | changes))
            )
        assert not (tmp_path / "run").exists()


def _with_prompts(project: Project, out: Path) -> Path:
    """A run of another recommender that tuned prompts."""
    prompts = TuningConfig(method="prompt", settings=PromptConfig(length=2))
    train_stage2(
        Stage2Config(
            stage1=project.stage1, out=out, epochs=1, batch_size=60, tuning=prompts, device="cpu", tracking=UNTRACKED
        )
    )
    return out


@pytest.mark.slow
def test_prompts_are_taken_over_alone_from_a_run_of_any_recommender(
    tiny_project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = _with_prompts(tiny_project, tmp_path / "there")
    prompts = TuningConfig(method="prompt", settings=PromptConfig(length=2))
    options: dict[str, Any] = {"transfer": "prompts", "transfer_from": there, "tuning": prompts}
    train_joint(_config(tiny_project, tmp_path / "new", tuning=prompts))
    capsys.readouterr()
    train_joint(_config(tiny_project, tmp_path / "run", **options))
    assert "took over 2 of 2 tensors of prompts" in (said := capsys.readouterr().out)
    assert "the recommender is new, the encoder's own" in said
    file = "encoder.safetensors"
    wanted, fresh, found = (load_file(folder / file) for folder in (there, tmp_path / "new", tmp_path / "run"))
    assert found.keys() == wanted.keys() == {"attached.image.vectors_PLD", "attached.text.vectors_PLD"}
    for name, value in found.items():
        assert torch.equal(value, wanted[name]), name
        assert not torch.equal(value, fresh[name]), name
    for name, value in load_file(tmp_path / "new" / "recommender.safetensors").items():
        assert torch.equal(load_file(tmp_path / "run" / "recommender.safetensors")[name], value), name
    source = read_record(tmp_path / "run").source
    assert source is not None
    assert source["fingerprint"] == read_record(there).fingerprint
    train_joint(_config(tiny_project, tmp_path / "on", **options, epochs=1, keep="last"))
    for name, value in load_file(tmp_path / "on" / file).items():
        assert not torch.equal(value, wanted[name]), name
    for changes, message in (
        ({"tuning": TUNED}, "tuning.method: got 'last_n', expected prompt, with --transfer prompts"),
        (
            {"tuning": TuningConfig(method="prompt")},
            r"transfer_from: .* has prompt with PromptConfig\(.*length=2\), expected prompt with",
        ),
        ({"transfer_from": tiny_project.stage1}, "tuned nothing in its encoder"),
    ):
        with pytest.raises(UserError, match=message):
            train_joint(_config(tiny_project, tmp_path / "refused", **(options | changes)))
        assert not (tmp_path / "refused").exists()
