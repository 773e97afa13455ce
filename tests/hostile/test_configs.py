"""Configuration files of any content: settings, or one line."""

from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import strategies as st

from ptmrec_dist import config
from ptmrec_dist.cli import COMMANDS, parse
from tests.hostile.cases import damaged, for_all, nothing_else_in, refused_in_one_line, with_other_values

_WRITTEN: dict[str, dict[str, object]] = {
    "pack": {"items": "i.csv", "interactions": "u.csv", "out": "o", "core": 2, "columns": {"item": "id", "text": ["a", "b"]}},
    "features": {"shards": "s", "out": "o", "encoder": {"model": "m", "pretrained": None}, "batch_size": 8},
    "stage1": {"shards": "s", "features": "f", "out": "o", "recommender": "vbpr", "model": {"dim": 8}, "lr": 0.001},
    "stage2": {"stage1": "r", "out": "o", "tuning": {"method": "prompt"}, "prompt": {"depth": 1, "length": 2}},
    "experiment": {"shards": "s", "out": "o", "encoder": {"model": "m"}, "seeds": [0, 1], "stage1": {"epochs": 2}},
    "sweep": {"stage1": "r", "out": "o", "space": {"last_n.n": {"randint": [1, 4]}}, "stage2": {"epochs": 2}},
}  # fmt: skip
_BOMB = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)), "out: *a11"]
)
_ODD = [
    _BOMB,
    "out: !!python/object/apply:os.system ['touch hacked']",
    "out: &a [*a]",
    "<<: {out: o}",
    "[" * 3000,
    "a: " * 3000,
    "out: 2001-01-01\nshards: 0x10\nstage1: .inf",
    "config: c.yaml",
    "- out",
    "out: o\nout: p",
    "? [a, b]\n: c",
    "1: 2\nnull: 3",
    "%YAML 9.9\n---\nout: o\n---\nout: p",
]


@pytest.mark.filterwarnings("ignore")
def test_a_configuration_of_any_content_is_read_or_refused(
    cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.yaml"
    monkeypatch.setattr(
        config, "settings_parser", cache(config.settings_parser)
    )  # made anew it takes longer than a case

    def check(case: tuple[str, bytes]) -> None:
        command, content = case
        path.write_bytes(content)
        with nothing_else_in(tmp_path), refused_in_one_line():
            parse(COMMANDS[command].settings, ["--config", str(path)], command)

    def content_of(command: str) -> st.SearchStrategy[tuple[str, bytes]]:
        written = _WRITTEN[command]
        other = with_other_values(written).map(lambda value: yaml.safe_dump(value, allow_unicode=True).encode())
        content = st.one_of(
            other, other, damaged([yaml.safe_dump(written).encode()]), st.sampled_from(_ODD).map(str.encode)
        )
        return st.tuples(st.just(command), content)

    for_all(st.sampled_from(list(_WRITTEN)).flatmap(content_of), check, cases)
