"""The README's path from a user's own tables to served answers, command by command as it stands on the page."""

import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ptmrec_dist import cli
from tests.conftest import REPOSITORY, write_source
from tests.ranks import free_port

_SHORT = {"stage1": "--epochs 3 --batch_size 64 --model.dim 8", "stage2": "--epochs 1", "refit": "--epochs 1"}


def _commands(heading: str) -> Iterator[str]:
    """The lines of the section's blocks, continued ones joined."""
    section = (REPOSITORY / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    for block in re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL):
        yield from block.replace("\\\n", "").splitlines()


def _write_tables(folder: Path) -> None:
    """The tiny catalogue with the ids and the folders that the README names, and a new item."""
    write_source(folder, num_items=60, num_users=40)
    ids = {"i8": "589", "i9": "296"}
    for name, column in (("items.csv", "image"), ("interactions.csv", "user_id")):
        with (folder / name).open() as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["item_id"] = ids.get(row["item_id"], row["item_id"].removeprefix("i"))
            row[column] = row[column].removeprefix("images/").removeprefix("u")
        with (folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    shutil.copy(folder / "images" / "0.jpg", folder / "images" / "new.jpg")
    (folder / "new.csv").write_text("item_id,title,text,image\nn1,New,a new red thing,new.jpg\n")


@contextmanager
def _server(words: list[str]) -> Iterator[None]:
    """`ptmrec serve … &` until `kill $!`."""
    process = subprocess.Popen([sys.executable, "-m", "ptmrec_dist", *words[1:-1]])
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def _answers(lines: Iterator[str], adapt: dict[str, str]) -> Iterator[list[dict[str, Any]]]:
    """Run the commands; gives what curl prints."""
    for line in lines:
        for written, used in adapt.items():
            line = line.replace(written, used)
        words = shlex.split(line)
        if words[0] == "curl":
            found = subprocess.run(words, capture_output=True, check=True).stdout
            yield json.loads(found)["predictions"]
        elif words[-1] == "&":
            with _server(words):
                yield from _answers(lines, adapt)
        elif words[0] == "kill":
            return
        else:
            assert words[0] == "ptmrec"
            assert cli.main([*words[1:], *_SHORT.get(words[1], "").split()]) == 0, line


@pytest.mark.slow
def test_the_path_from_own_tables_to_served_answers_and_a_new_item_in_them(
    tiny_clip: Path, empty_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    shutil.copy(empty_sqlite, tmp_path)
    _write_tables(tmp_path)
    weights = "ViT-B-32 --encoder.pretrained laion2b_s34b_b79k"
    first, second = _answers(_commands("Your own data"), {weights: str(tiny_clip), "5000": str(free_port())})
    assert [row["user_id"] for row in first] == ["1"] * 10 + [None] * 10
    assert {row["item_id"] for row in second} == {"n1", "589"}
