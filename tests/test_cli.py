"""The command line: one line and exit code 2 for a user's mistake, the same schema for flags and YAML, and README's lines."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ptmrec_dist import cli, config
from ptmrec_dist.config.command_line import list_options
from ptmrec_dist.errors import FoundByFirst, UserError
from ptmrec_dist.hardware import cores
from tests.conftest import REPOSITORY, Project
from tests.permissions import bound_by_permissions


def _parse(command: str, *arguments: object) -> object:
    return cli.parse(cli.COMMANDS[command].settings, [str(argument) for argument in arguments], f"ptmrec {command}")


STAGE2 = ("--stage1", "runs/a", "--out", "runs/b")


def test_flags_yaml_and_defaults_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(
        "tuning:\n  method: prompt\nprompt:\n  depth: 2\n  length: 7\noptim:\n  encoder_lr: 1e-4\n"
    )
    settings = _parse("stage2", *STAGE2, "--config", tmp_path / "settings.yaml", "--prompt.depth", 9)
    assert isinstance(settings, config.Stage2Config)
    assert settings.tuning.settings == config.PromptConfig(depth=9, length=7)
    assert settings.optim.encoder_lr == 1e-4
    assert settings.stage1 == Path("runs/a")
    assert settings.batch_size == config.Stage2Config(stage1=Path(), out=Path()).batch_size


def test_the_rank_flag_of_the_deepspeed_launcher_is_dropped() -> None:
    assert _parse("stage2", "--local_rank=3", *STAGE2) == _parse("stage2", *STAGE2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*STAGE2, "--prompt.depht", 9), "unknown: --prompt.depht 9; the nearest is --prompt.depth"),
        (
            (*STAGE2, "--prompt.depth", 3),
            "prompt: got settings of a tuning method that is not used; expected those of last_n",
        ),
        ((*STAGE2, "--prompt.depth", 0), "prompt.depth: got 0, expected 1 or more, or 'all'"),
        ((*STAGE2, "--encoder.model", "clip"), "unknown: --encoder.model clip; the nearest is --encoder; "),
        (
            (*STAGE2, "--optim.encoder_lr.x", "3"),
            "unknown: --optim.encoder_lr.x 3; the nearest is --optim.encoder_lr; ",
        ),
        ((*STAGE2, "--zero.stage", 7), "zero.stage: got '7', expected 0, 1, 2 or 3; "),
        ((*STAGE2, "--batch_size", "many"), "batch_size: got 'many', expected a whole number; "),
        ((*STAGE2, "--optim.encoder_lr", "low"), "optim.encoder_lr: got 'low', expected a number; "),
        ((*STAGE2, "--refit", "maybe"), "refit: got 'maybe', expected true or false; "),
        ((*STAGE2, "--keep", "first"), "keep: got 'first', expected best or last; "),
        (
            (*STAGE2, "--tuning.method", "prompt", "--prompt.depth", "deep"),
            "prompt.depth: got 'deep', expected a whole number or all; ",
        ),
        ((*STAGE2, "--tracking", "off"), "tracking: got 'off', expected settings by name, such as {a: 1}, or a file"),
        ((*STAGE2, "--config", "nowhere.yaml"), "config: got 'nowhere.yaml', which is not a file; expected one with"),
        ((*STAGE2, "--config="), "config: got '', which is not a file; "),
        (("--stage1", "runs/a", "--out", ""), "out: got '', expected a path; "),
        ((*STAGE2, "--teacher_run="), "teacher_run: got '', expected a path; "),
        ((*STAGE2, "--keep", ""), "keep: got '', expected best or last; "),
        ((*STAGE2, "--optim.encoder_lr", ".inf"), "optim.encoder_lr: got inf, expected a finite number"),
        ((*STAGE2, "--kt_weight", ".nan"), "kt_weight: got nan, expected a finite number"),
        ((*STAGE2, "--batch_size", "9" * 25), f"batch_size: got {'9' * 25}, expected at most 9223372036854775807"),
        ((*STAGE2, "--timeout", "1e40"), "timeout: got 1e+40, expected more than 0 seconds, at most 1000000000"),
        ((*STAGE2, "--seed", 2**32), "seed: got 4294967296, expected 0 to 4294967295"),
        (("--out", "runs/b"), "stage1: got none, expected --stage1; "),
        ((*STAGE2, "--seed", -1), "seed: got -1, expected 0 to 4294967295"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        _parse("stage2", *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_of_an_encoder_and_of_arrays_at_once_are_refused() -> None:
    both = ("--shards", "s", "--out", "o", "--text_npy", "a.npy", "--encoder.model", "m")
    with pytest.raises(UserError, match=r"^text_npy: got a\.npy, expected none with an encoder"):
        _parse("features", *both)


def test_dashes_and_underscores_in_option_names_mean_the_same() -> None:
    dashed = _parse("pack", "--interactions", "a-b.csv", "--out=x-y", "--on-error", "fail", "--min-rating=3")
    assert dashed == _parse(
        "pack", "--interactions", "a-b.csv", "--out", "x-y", "--on_error", "fail", "--min_rating", 3
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("name", ("name",)),
        ("a,b", ("a", "b")),
        ("a, b", ("a", "b")),
        ("[a,b]", ("a", "b")),
        ('["a,b"]', ("a,b",)),
        ("1", ("1",)),
    ],
)
def test_a_list_is_written_as_its_values(written: str, read: tuple[str, ...]) -> None:
    rest = ("--interactions", "a.csv", "--out", "x")
    for words in (("--columns.text", written), (f"--columns.text={written}",)):
        assert _parse("pack", *words, *rest).columns.text == read


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (
            "pack",
            ("--columns.text", "title", "--columns.text=plot"),
            "columns.text: got 'title' and 'plot', expected the option once, with all its values: --columns.text A,B",
        ),
        ("merge", ("a", "b", "--sources", "c"), "sources: got '[\"a\", \"b\"]' and 'c', expected the option once"),
        ("recommend", ("--for-items", "1", "--for_items", "2"), "for_items: got '1' and '2', expected the option once"),
        ("experiment", ("--variants", "{a: {}}", "--variants", "{b: {}}"), "all its values: --variants '{A: 1, B: 2}'"),
    ],
)
def test_a_list_or_a_mapping_given_twice_is_refused(command: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        _parse(command, *words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_a_single_value_given_twice_the_last_counts_and_a_list_replaces_that_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("columns: {text: [title]}\ncore: 3")
    read = _parse(
        "pack",
        "--config",
        tmp_path / "a.yaml",
        "--interactions=a",
        "--interactions=b",
        "--out=x",
        "--columns.text=plot",
    )
    assert (read.interactions, read.core, read.columns.text) == (Path("b"), 3, ("plot",))


def test_every_setting_that_takes_a_list_takes_one_value_and_shows_how_in_its_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command, entry in cli.COMMANDS.items():
        options = list_options(entry.settings)
        if not options:
            continue
        with pytest.raises(SystemExit):
            _parse(command, "--help")
        shown = re.sub(r"\s+", " ", capsys.readouterr().out)
        for option in options:
            assert re.search(rf"{option} [^-]*`[^`\s]+,[^`\s]+`", shown), option
    sweep = ("sweep", "--stage1", "a", "--out", "b", "--space", '{"optim.lr": {"choice": [1, 2]}}')
    assert _parse(*sweep, "--winner_seeds", 7).winner_seeds == (7,)
    experiment = ("experiment", "--shards", "a", "--encoder.model", "m", "--out", "b", "--seeds", "3,4")
    assert _parse(*experiment, "--recommenders", "vbpr", "--methods=lora").seeds == (3, 4)


def test_an_unknown_key_in_yaml_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("prompt:\n  dpeth: 3\n")
    with pytest.raises(UserError, match="dpeth"):
        _parse("stage2", *STAGE2, "--config", tmp_path / "settings.yaml")


def test_settings_within_settings_are_read_and_refused_as_those_of_a_command_line() -> None:
    """As an experiment gives the settings of its commands."""
    pack = {"interactions": "a.csv", "out": "b", "columns": {"text": "title,story", "attributes": "year"}}
    columns = config.from_plain(config.PackConfig, pack).columns
    assert (columns.text, columns.attributes) == (("title", "story"), ("year",))
    for key, message in (
        ({"columns": {"txt": "story"}}, "unknown: columns.txt; the nearest is columns.text"),
        ({"cores": 3}, "unknown: cores; the nearest is core"),
        ({"core": "many"}, "core: got 'many', expected a whole number"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            config.from_plain(config.PackConfig, pack | key)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("pack", ("--interactions", "a.csv", "--out", "x", "--workers")),
        ("features", ("--shards", "a", "--encoder.model", "b", "--out", "x", "--workers")),
        ("stage2", (*STAGE2, "--workers")),
        ("experiment", ("--shards", "a", "--encoder.model", "m", "--out", "x", "--processes")),
        ("serve", ("--model", "models:/m@a", "--workers")),
    ],
)
def test_more_processes_than_the_cores_can_serve_are_refused_with_their_number(
    command: str, arguments: tuple[str, ...]
) -> None:
    name, most = arguments[-1].removeprefix("--"), 32 * cores()
    expected = f"{name}: got {most + 1}, expected [01] to {most}, which is 32 for each of the {cores()} cores here"
    with pytest.raises(UserError, match=f"^{expected}$"):
        _parse(command, *arguments, most + 1)
    assert getattr(_parse(command, *arguments, most), name) == most


def test_an_unknown_command_is_told_the_nearest_and_help_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["Stagge2"]) == 2
    assert capsys.readouterr().err.endswith("serve, demo; the nearest is stage2\n")
    assert cli.main(["help"]) == 0
    assert capsys.readouterr().out == f"{cli.usage()}\n"


@pytest.mark.parametrize("column", ["attributes", "user", "rating", "time"])
def test_columns_that_new_items_are_not_read_by_are_no_options(column: str) -> None:
    given = ("--model", "models:/m@a", "--items", "new.csv", f"--columns.{column}", "year")
    with pytest.raises(UserError, match=rf"unknown: --columns\.{column}"):
        _parse("add-items", *given)


def _ptmrec(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from ptmrec_dist.cli import main; sys.exit(main())"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_mistakes_end_with_code_2_and_one_line_without_a_traceback(tiny_project: Project, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    mistakes = [
        ("pack", "--interactions", tmp_path / "missing.csv", "--out", tmp_path / "x"),
        ("pack", "--interactions", tmp_path / "empty.csv", "--out", tmp_path / "x"),
        ("features", "--shards", tmp_path, "--encoder.model", tiny_project.clip, "--out", tmp_path / "x"),
        ("evaluate", "--run", tmp_path),
        ("stage3",),
    ]
    for arguments in mistakes:
        done = _ptmrec(*arguments)
        assert done.returncode == 2, arguments
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert "error:" in done.stderr
    assert not (tmp_path / "x").exists()


_LATE = """
import os, sys, time
from ptmrec_dist.cli import run
if os.environ["RANK"] == sys.argv.pop(1):
    time.sleep(2)
sys.exit(run("stage1", sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_mistake_is_reported_though_the_launcher_ends_all_ranks_when_the_first_ends(tmp_path: Path) -> None:
    """The first rank is late: it has not read anything yet when another has found the mistake."""
    (tmp_path / "late.py").write_text(_LATE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [*launcher, tmp_path / "late.py", "0", "--shards", tmp_path / "nowhere", "--out", tmp_path / "x"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=300)
    mistakes = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert mistakes == [
        f"ptmrec stage1: error: shards: no files at {tmp_path}/nowhere; expected a folder that `ptmrec pack` wrote"
    ]


def test_a_mistake_that_another_rank_alone_finds_is_reported_by_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_GRACE", 0.01)
    monkeypatch.setenv("RANK", "1")
    for error, said in (
        (UserError("shards: lost"), "ptmrec demo: rank 1: error: shards: lost\n"),
        (FoundByFirst("a mistake"), ""),
    ):
        monkeypatch.setattr(cli, "_function", lambda path, error=error: lambda settings: _raise(error))
        assert cli.run("demo", []) == 2
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("name", ["read", "written"])
def test_a_file_that_may_not_be_read_or_written_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.touch(mode=0o000)
    acts = {"read": closed.read_bytes, "written": lambda: closed.write_text("x")}
    monkeypatch.setattr(cli, "_function", lambda path: lambda settings: acts[name]())
    with bound_by_permissions():
        assert cli.run("demo", []) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"Permission denied: {str(closed)!r}; allow access to it and run the same command again")
    assert not closed.read_bytes()


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import torch

    for allocate in (lambda: torch.empty(2**57), lambda: np.empty(2**57), lambda: bytes(2**60)):
        monkeypatch.setattr(cli, "_function", lambda path, allocate=allocate: lambda settings: allocate())
        assert cli.run("demo", []) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert "out of memory (" in line
        assert line.endswith("use smaller batches or a smaller model, or a machine with more memory")


def test_an_error_of_another_kind_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (RuntimeError("shapes differ"), FileNotFoundError(2, "No such file", "x")):
        monkeypatch.setattr(cli, "_function", lambda path, error=error: lambda settings: _raise(error))
        with pytest.raises(type(error)):
            cli.run("demo", [])


def _raise(error: Exception) -> None:
    raise error


def test_help_of_every_command_loads_nothing_heavy() -> None:
    """Any of these takes seconds to import."""
    program = (
        "import sys; from ptmrec_dist.cli import COMMANDS, main\n"
        "assert main(['--help']) == 0\n"
        "for command in COMMANDS:\n"
        "    try: main([command, '--help'])\n"
        "    except SystemExit as stopped: assert stopped.code == 0, command\n"
        "    else: raise AssertionError(command)\n"
        "print(sorted({'torch', 'deepspeed', 'mlflow', 'ray', 'open_clip', 'polars', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_printed_settings_are_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ("--tuning.method", "prompt", "--prompt.depth", 3)
    with pytest.raises(SystemExit):
        _parse("stage2", *STAGE2, *prompts, "--print_config")
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert yaml.safe_load((tmp_path / "printed.yaml").read_text())["prompt"]["depth"] == 3
    assert _parse("stage2", "--config", tmp_path / "printed.yaml") == _parse("stage2", *STAGE2, *prompts)


def _documented_lines() -> list[str]:
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    found = [block for page in pages for block in fence.findall(page.read_text())]
    blocks = [block for language, block in found if language in ("", "bash", "sh")]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines = [line.removesuffix(" &") for line in lines]
    return [line for line in lines if re.search(r"(^|run )ptmrec \w|launchers/\w+\.py", line)]


@pytest.mark.parametrize("line", _documented_lines())
def test_documented_commands_are_understood(line: str) -> None:
    words = shlex.split(line)
    launcher = next((word for word in words if word.startswith("launchers/")), None)
    if launcher:
        command, start = Path(launcher).stem, words.index(launcher) + 1
    else:
        command, start = words[words.index("ptmrec") + 1], words.index("ptmrec") + 2
    assert isinstance(_parse(command, *words[start:]), cli.COMMANDS[command].settings)


@pytest.mark.parametrize("script", sorted((REPOSITORY / "launchers").glob("*.py")), ids=lambda script: script.stem)
def test_a_launcher_runs_the_command_that_it_is_called_like(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [str(script), "--local_rank=0", "--no_such_option", "1"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"launchers/{script.name}: error: ")
    assert "no_such_option" in line


@pytest.mark.parametrize(
    ("written", "text", "item"),
    [
        ("columns: {text: title, item: 1}", ("title",), "1"),
        ("columns: {text: 'title, text'}", ("title", "text"), "item_id"),
        ("columns: {text: 2}", ("2",), "item_id"),
        ("columns.text: title", ("title",), "item_id"),
        ("columns: {text: [title, 2]}", ("title", "2"), "item_id"),
    ],
)
def test_yaml_takes_names_and_numbers_as_the_command_line_does(
    written: str, text: tuple[str, ...], item: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(written)
    columns = _parse("pack", "--interactions", "a.csv", "--out", "x", "--config", tmp_path / "c.yaml").columns
    assert (columns.text, columns.item) == (text, item)


@pytest.mark.parametrize("number", ["1e-4", "1.e-4", "+1E-4", "0.0001"])
def test_yaml_takes_numbers_with_exponents_where_any_value_may_stand(number: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"space: {{optim.encoder_lr: {{loguniform: [{number}, 1]}}}}")
    settings = _parse("sweep", "--stage1", "a", "--out", "b", "--config", tmp_path / "c.yaml")
    assert settings.space == {"optim.encoder_lr": {"loguniform": [0.0001, 1]}}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("out: ''", "out: got '', expected a path"),
        ("columns: {text: null}", "columns.text: got null, expected a list"),
        ("columns: [a]", "columns: got .*, expected settings by name"),
        ("columns: {itm: a}", "itm"),
        ("core: 1\nseed: 0\ncore: 2", "'core' is there twice, from line 1; remove one"),
        ("columns:\n  {item: a, text: b, item: c}", "'item' is there twice, from line 2; remove one"),
        ("items: [a]", "items: got .*'a'.*, expected a path"),
    ],
)
def test_yaml_of_another_shape_is_refused_in_one_line(written: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(written)
    with pytest.raises(UserError, match=message) as error:
        _parse("pack", "--interactions", "a.csv", "--out", "x", "--config", tmp_path / "c.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("ray: {cpus: x}", "ray.cpus: got 'x', expected a number; "),
        ("ray: {placement: odd}", "ray.placement: got 'odd', expected PACK, SPREAD, STRICT_PACK or STRICT_SPREAD; "),
        ("ray: {cpu: 4}", "unknown: ray.cpu; "),
        ("encoder: {model: [a]}", """encoder.model: got "['a']", expected text; """),
        ("encoders: {clip: {model: [a]}}", """encoders.NAME.model: got "['a']", expected text; """),
        ("encoders: {clip: 3}", "encoders: got '3', expected settings by name, such as {a: 1}; "),
        ("out: [a]", "out: got ['a'], expected a path; "),
        ("out: {a: b}", "out: got {'a': 'b'}, expected a path; "),
        ("source: [a]", "source: got ['a'], expected a path; "),
        ("source: true", "source: got True, expected a path; "),
    ],
)
def test_values_of_another_kind_are_named_with_the_setting_that_they_are_of(
    written: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(written)
    with pytest.raises(UserError) as error:
        _parse("experiment", "--shards", "a", "--out", "x", "--config", tmp_path / "c.yaml")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_path_in_yaml_may_be_a_number(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("out: 2024\nitems: 7")
    settings = _parse("pack", "--interactions", "a.csv", "--config", tmp_path / "c.yaml")
    assert (settings.out, settings.items) == (Path("2024"), Path("7"))
