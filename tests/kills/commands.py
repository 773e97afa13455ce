"""The commands that are killed: what each is given, and what is in its folder before."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.kills.inputs import MODEL, OFF, SHORT, Inputs, pack, stage2

EVERY = ("--checkpoint_every", "1")


@dataclass(frozen=True)
class Case:
    """A command that writes."""

    words: Callable[[Inputs, Path], list[str]]
    """Command line, from its inputs and the folder that it writes to."""
    before: Callable[[Inputs, Path], None] | None = None
    """Puts into that folder what is there before the command."""
    ranks: int = 1
    """Processes that run it."""
    setup: str = ""
    """`module:function` that is called in each process first."""
    unequal: frozenset[str] = frozenset()
    """Names of what it leaves otherwise in any two runs, besides those of all commands."""
    once: bool = False
    """Given again when it has had its effect, it has another or is refused."""


READ_ONLY = {
    "doctor": "reports what it finds",
    "models": "lists the registry",
    "serve": "answers requests until it is stopped",
}
"""Commands that write nothing."""


def _store(made: Inputs, folder: Path) -> None:
    shutil.copytree(made.store, folder, dirs_exist_ok=True)


def _tuned_run(made: Inputs, folder: Path) -> None:
    shutil.copytree(made.tuned, folder / "out")


def _shards_and_features(made: Inputs) -> tuple[str, ...]:
    return ("--shards", f"{made.project.shards}", "--features", f"{made.project.features}")


def _stage1(made: Inputs, folder: Path, recommender: str, *more: str) -> list[str]:
    words = ["stage1", *_shards_and_features(made), "--recommender", recommender, "--model.dim", "8", *more]
    return [*words, "--out", f"{folder}/out", *EVERY, *SHORT]


def _recommend(folder: Path, *users: str) -> list[str]:
    return ["recommend", "--model", f"models:/{MODEL}@champion", *users, "--out", f"{folder}/out.parquet"]


def make_demo_small() -> None:
    """The steps of the demo on a catalogue that takes seconds."""
    from ptmrec_dist import demo

    demo.NUM_ITEMS, demo.NUM_USERS, demo.NUM_PAIRS = 60, 60, 60


CASES = {
    "import": Case(lambda made, folder: ["import", "movielens", "--source", f"{made.films}", "--out", f"{folder}/out"]),
    "import:images": Case(
        lambda made, folder: ["import", "huggingface", "--source", f"{made.arrow}", "--out", f"{folder}/out"]
    ),
    "download": Case(lambda made, folder: [
        *("download", "--items", f"{made.addresses}", "--out", f"{folder}/out", "--hosts", made.host, "--rate", "200"),
    ]),
    "pack": Case(lambda made, folder: pack(made.project, made.project.source / "items.csv", folder / "out")),
    "merge": Case(lambda made, folder: [
        *("merge", f"{made.project.shards}", f"{made.other_shards}", "--out", f"{folder}/out"),
    ]),
    "features": Case(lambda made, folder: [
        *("features", "--shards", f"{made.project.shards}", "--encoder.model", f"{made.project.clip}"),
        *("--out", f"{folder}/out", "--device", "cpu"),
    ]),
    "stage1": Case(lambda made, folder: [*_stage1(made, folder, "vbpr"), *OFF]),
    "stage1:sequences": Case(lambda made, folder: [*_stage1(made, folder, "sasrec", "--model.length", "5"), *OFF]),
    "stage1:pmmrec": Case(
        lambda made, folder: [
            *_stage1(made, folder, "pmmrec", "--model.length", "5", "--model.fusion_heads", "2"), *OFF,
        ]
    ),
    "stage1:tracked": Case(lambda made, folder: _stage1(made, folder, "vbpr"), before=_store),
    "stage2": Case(lambda made, folder: stage2(made.project, folder / "out")),
    "stage2:ranks": Case(lambda made, folder: [*stage2(made.project, folder / "out"), "--timeout", "60"], ranks=2),
    "refit": Case(lambda made, folder: ["refit", "--run", f"{made.tuned}", "--out", f"{folder}/out", *EVERY, *SHORT, *OFF]),
    "joint": Case(lambda made, folder: [
        *("joint", *_shards_and_features(made), "--out", f"{folder}/out"),
        *("--recommender", "vbpr", "--tuning.method", "prompt", "--prompt.depth", "1", *EVERY, *SHORT, *OFF),
    ]),
    "joint:pmmrec": Case(lambda made, folder: [
        *("joint", *_shards_and_features(made), "--out", f"{folder}/out", "--recommender", "pmmrec", "--model.dim", "8"),
        *("--model.length", "5", "--model.fusion_heads", "2", "--tuning.method", "last_n", "--last_n.n", "1"),
        *(*EVERY, *SHORT, *OFF),
    ]),
    "contrastive": Case(lambda made, folder: [
        *("contrastive", "--shards", f"{made.project.shards}", "--encoder.model", f"{made.project.clip}"),
        *("--out", f"{folder}/out", *EVERY, *SHORT, *OFF, "--batch_size", "20"),
    ]),
    "experiment": Case(lambda made, folder: [
        *("experiment", "--shards", f"{made.project.shards}", "--encoder.model", f"{made.project.clip}"),
        *("--out", f"{folder}/out", "--seeds", "0", "--paradigms", "frozen,two_stage", "--methods", "lora"),
        *("--stage1", '{"epochs": 2, "batch_size": 64, "model": {"dim": 8}}'),
        *("--tuned", '{"epochs": 1, "batch_size": 24, "lora": {"rank": 2}}', "--device", "cpu", *OFF),
    ]),
    "sweep": Case(lambda made, folder: [
        *("sweep", "--stage1", f"{made.project.stage1}", "--out", f"{folder}/out", "--search", "grid"),
        *("--space", '{"optim.encoder_lr": {"choice": [0.01]}}', "--stage2", '{"epochs": 2, "batch_size": 24}'),
        *("--asha.enabled", "false", "--winner_seeds", "", "--device", "cpu", *OFF),
    ]),
    "evaluate": Case(
        lambda made, folder: ["evaluate", "--run", f"{folder}/out", *_shards_and_features(made)[:2], "--device", "cpu"],
        before=_tuned_run,
    ),
    "report": Case(lambda made, folder: [
        *("report", "--runs", f"{made.project.stage1},{made.tuned}", "--out", f"{folder}/out.html"),
    ]),
    "export": Case(lambda made, folder: [
        *("export", "--run", f"{made.tuned}", "--format", "open_clip", "--out", f"{folder}/out"),
    ]),
    "register": Case(
        lambda made, folder: ["register", "--run", f"{made.project.stage1}", "--name", "another"], before=_store, once=True
    ),
    "register:champion": Case(
        lambda made, folder: ["register", "--run", f"{made.project.stage1}", "--name", MODEL, "--alias", "champion"],
        before=_store, once=True,
    ),
    "promote": Case(
        lambda made, folder: ["promote", "--name", MODEL, "--part", "validation", "--significance", "1"],
        before=_store, once=True,
    ),
    "add-items": Case(lambda made, folder: [
        *("add-items", "--model", f"models:/{MODEL}@champion", "--items", f"{made.new_items}"),
        *("--images", f"{made.project.source}"),
    ], before=_store, once=True),
    "rollback": Case(lambda made, folder: ["rollback", "--name", MODEL], before=_store, once=True),
    "delete": Case(lambda made, folder: ["delete", "--name", MODEL, "--version", "1"], before=_store, once=True),
    "recommend": Case(lambda made, folder: _recommend(folder, "--all"), before=_store),
    "recommend:users": Case(
        lambda made, folder: _recommend(folder, "--users_file", f"{folder}/users.txt"),
        before=lambda made, folder: (_store(made, folder), (folder / "users.txt").write_text("u3\nu1\nu9\n"))[0],
    ),
    "demo": Case(lambda made, folder: ["demo", "--out", f"{folder}/out"], setup="tests.kills.commands:make_demo_small",
        unequal=frozenset({"mlflow"})),  # run again, it registers its models once more
}  # fmt: skip
"""Name to case: the command, or `command:variant`."""
