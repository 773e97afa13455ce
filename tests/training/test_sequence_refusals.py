"""Bad input of sequence recommenders at the command line: one line, exit code 2, nothing written, nothing changed."""

from pathlib import Path

import polars as pl
import pytest

from ptmrec_dist import cli
from ptmrec_dist.config import EncoderConfig, FeaturesConfig, PackConfig
from ptmrec_dist.data.packing.pack import pack
from ptmrec_dist.encoders.features import extract_features
from tests.conftest import Project
from tests.data.small_catalogue import folder_bytes
from tests.encoders.families import write_family

_QUIET = ["--device", "cpu", "--tracking.enabled", "false"]
_SIZES = {"dim": 8, "length": 5, "fusion_heads": 2}


def _sizes(**changes: int) -> list[str]:
    return [word for name, value in {**_SIZES, **changes}.items() for word in (f"--model.{name}", str(value))]


@pytest.fixture(scope="module")
def folder(tiny_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that parts can be taken from, data without times and of single interactions, and features without tokens."""
    out = tmp_path_factory.mktemp("refusals")
    rows = pl.read_csv(tiny_project.source / "interactions.csv")
    labelled = rows.with_columns(x_label=pl.int_range(pl.len()).over("user_id").clip(0, 2))
    for name, table in {"timeless": labelled.drop("timestamp"), "single": labelled}.items():
        table.write_csv(out / f"{name}.csv")
        pack(PackConfig(interactions=out / f"{name}.csv", out=out / name, split="given", core=0))
    trained = ["joint", *_inputs(tiny_project), "--recommender", "pmmrec", *_sizes(), "--tuning.method", "none"]
    assert cli.main([*trained, "--epochs", "0", *_QUIET, "--out", str(out / "source")]) == 0
    encoder = EncoderConfig(model=str(write_family(out / "resnet", "resnet")))
    extract_features(FeaturesConfig(shards=tiny_project.shards, out=out / "resnet_features", encoder=encoder))
    return out


def _inputs(project: Project, features: Path | None = None) -> list[str]:
    return ["--shards", str(project.shards), "--features", str(features or project.features)]


def _command(case: str, project: Project, folder: Path) -> list[str]:
    joint = ["joint", *_inputs(project), "--recommender", "pmmrec", "--tuning.method", "none"]
    transfer = ["--transfer", "full", "--transfer_from", str(folder / "source")]
    merge = ["merge", str(project.shards)]
    commands = {
        "no times": ["stage1", "--shards", str(folder / "timeless"), "--recommender", "sasrec"],
        "one interaction": ["stage1", "--shards", str(folder / "single"), "--recommender", "gru4rec"],
        "one sequence a step": [
            *["stage1", "--shards", str(project.shards), "--recommender", "sasrec", "--batch_size", "1"]
        ],
        "one sequence a step of both": [*joint, *_sizes(), "--batch_size", "1"],
        "other width": [*joint, *transfer, *_sizes(dim=16)],
        "other length": [*joint, *transfer, *_sizes(length=9)],
        "no source run": [*joint, "--transfer", "full", "--transfer_from", str(folder / "nowhere"), *_sizes()],
        "no tokens": [
            *["joint", *_inputs(project, folder / "resnet_features"), "--recommender", "pmmrec", *_sizes()],
            *["--tuning.method", "last_n"],
        ],
        "unknown source of a merge": [*merge, str(folder / "nowhere")],
        "the same source twice": [*merge, str(project.shards), "--names", "one,other"],
        "unknown source of an experiment": [
            *["experiment", "--shards", str(project.shards), "--source", str(folder / "nowhere"), "--methods", "none"],
            *["--encoder.model", str(project.clip), "--recommenders", "pmmrec", "--paradigms", "transfer_full"],
            *["--baseline", "transfer_full"],
        ],
    }
    return commands[case]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no times", "train interactions of {folder}/timeless have no time"),
        ("one interaction", "no user of {folder}/single has 2 training interactions"),
        ("one sequence a step", "batch_size: got 1, expected more, such as "),
        ("one sequence a step of both", "batch_size: got 1, expected more, such as "),
        ("other width", r"transfer: fusion.block.linear1.bias is (32,) in {folder}/source and (64,) here"),
        ("other length", "transfer: transformer.positions_LD is (5, 8) in {folder}/source and (9, 8) here"),
        ("no source run", "{folder}/nowhere is not a run folder"),
        ("no tokens", "encoder: the image tower (ModifiedResNet) has no sequence of tokens"),
        ("unknown source of a merge", "sources: no files at {folder}/nowhere"),
        ("the same source twice", "are the same catalogue"),
        ("unknown source of an experiment", "source: no files at {folder}/nowhere"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(
    tiny_project: Project,
    folder: Path,
    tmp_path: Path,
    case: str,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    quiet = [] if case in ("unknown source of a merge", "the same source twice") else _QUIET
    before = folder_bytes(folder)
    capfd.readouterr()
    assert cli.main([*_command(case, tiny_project, folder), *quiet, "--out", str(tmp_path / "out")]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert message.format(folder=folder) in lines[0]
    assert not list(tmp_path.iterdir())
    assert folder_bytes(folder) == before
