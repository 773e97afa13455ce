"""What `import ptmrec_dist` promises: a version, a few names, and nothing heavy until one of them is used."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ptmrec_dist
from ptmrec_dist import UserError, run_command
from ptmrec_dist.encoders.encoder import Encoder, load_encoder
from ptmrec_dist.recommenders import build_recommender
from ptmrec_dist.registry import load_model
from ptmrec_dist.training.finished_run import load_run
from tests.conftest import REPOSITORY, write_source


def test_public_names_are_the_objects_that_the_package_uses() -> None:
    assert ptmrec_dist.Encoder is Encoder
    assert ptmrec_dist.build_recommender is build_recommender
    assert ptmrec_dist.load_model is load_model
    assert ptmrec_dist.load_run is load_run
    assert ptmrec_dist.load_encoder is load_encoder


def test_every_public_name_exists() -> None:
    assert all(getattr(ptmrec_dist, name) is not None for name in ptmrec_dist.__all__)


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "print(sorted({'torch', 'deepspeed', 'mlflow', 'ray', 'open_clip', 'polars', 'numpy'} & set(sys.modules)))"
    code = f"import sys, ptmrec_dist; assert ptmrec_dist.__version__; {heavy}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_examples_of_the_api_page_train_a_run_and_score_all_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_source(tmp_path, num_items=60, num_users=40)
    monkeypatch.chdir(tmp_path)
    training, scoring = re.findall(
        r"```python\n(.*?)```", (REPOSITORY / "docs" / "api.md").read_text(), flags=re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(training, names)
    capsys.readouterr()
    exec(training.replace("20", "21"), names)  # the same folder with other settings
    assert "runs/a" in capsys.readouterr().out
    exec(scoring, names)
    assert names["scores"].shape == (2, names["run"].dataset.num_items)


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        ("stage3", {}, "unknown command 'stage3'; expected one of .*stage1"),
        ("stage1", {"shards": "s", "recommender": "bpr", "out": "r", "epoch": 3}, "epoch"),
        ("stage1", {"shards": "s", "recommender": "bpr", "out": "r", "model": {"layers": 3}}, "layers"),
        ("stage1", {"shards": Path("absent"), "recommender": "bpr", "out": Path("r")}, "absent"),
    ],
)
def test_a_command_run_from_python_raises_what_the_command_line_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run_command(command, settings)
    assert not list(tmp_path.iterdir())
