"""Recommendations of a registered model: printed for given users, or written for all (`ptmrec recommend`)."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptmrec_dist.config import RecommendConfig
from ptmrec_dist.distributed import join_world
from ptmrec_dist.errors import UserError
from ptmrec_dist.files import refuse_file_above, unwritable
from ptmrec_dist.lock import exclusive_out
from ptmrec_dist.registry.loading import verified_files
from ptmrec_dist.serving.batch import write_lists
from ptmrec_dist.serving.ids import unknown_of
from ptmrec_dist.serving.params import Params

if TYPE_CHECKING:
    from rich.table import Table

    from ptmrec_dist.serving import ServedModel

_ANY_WIDTH = 100_000  # characters


@exclusive_out
def recommend(config: RecommendConfig) -> None:
    """Print recommendations for given users, or write those for all (`ptmrec recommend`).

    Collective: every rank must call this.

    Args:
        config: Settings.

    Raises:
        UserError: An unknown model, version or alias; an unknown user under `--unknown error`; no registry; a file that
            cannot be written.
    """
    users, empty = _users(config)
    if config.out is not None:
        _check_writable(config.out)
    with verified_files(config.model) as folder:
        model = _served(folder)
    params = _params(config)
    if config.for_items:
        found = model.users_for(config.for_items, params)
        _print_users(found)
        _print_empty(len(config.for_items), "items", found)
        return
    if config.out is not None:
        world = join_world("cpu")
        if world.is_first and empty:
            print(f"{len(users) + empty} lines of {config.users_file} read, {empty} left out: empty")
        write_lists(model, config.out, world, params, None if config.all else users)
        if world.is_first:
            _print_left_out(model, config)
        return
    requesters = model.users.resolve(users, [None] * len(users), config.unknown)
    found = model.recommend(requesters, params)
    _print_table(found)
    _print_empty(len(users), "users", found)
    _print_left_out(model, config)


def _params(config: RecommendConfig) -> Params:
    """What a request over HTTP would ask for."""
    return Params(
        top_k=config.top_k,
        exclude_seen=config.exclude_seen,
        candidates="items" if config.items else config.candidates,
        items=config.items,
        exclude=config.exclude,
        filters=config.filters,
        diversity=config.diversity,
        explain=config.explain,
        unknown=config.unknown,
    )


def _users(config: RecommendConfig) -> tuple[list[str], int]:
    """Users that the settings name, and how many lines of their file are empty."""
    if config.users_file is not None:
        try:
            content = config.users_file.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"users_file: {config.users_file} cannot be read ({error}); expected a user id on each line"
            ) from error
        # Only at line ends of files: an id may contain U+2028 and what else `splitlines` splits at.
        lines = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
        users = [line for line in lines if line]
        if not users:
            raise UserError(f"users_file: {config.users_file} is empty, expected a user id on each line")
        return users, len(lines) - len(users)
    users = [user.strip() for user in (config.users or "").split(",") if user.strip()]
    if config.users is not None and not users:
        raise UserError(f"users: got {config.users!r}, expected user ids separated by commas")
    return users, 0


def _served(folder: Path) -> "ServedModel":
    from ptmrec_dist.serving import ServedModel  # takes seconds; wrong options are refused before

    served = folder / "artifacts" / "model"
    if not (served / "model.json").is_file():
        raise UserError("model: it is not one that `ptmrec register` made")
    return ServedModel(served, new_items=False)


def _check_writable(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"out: {out} is a folder, expected the name of a file")
    refuse_file_above(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error


def _print_users(columns: dict[str, list[Any]]) -> None:
    from rich.table import Table

    table = Table("item", "rank", "user", "score")
    for item, rank, user, score in zip(*(columns[name] for name in ("item_id", "rank", "user_id", "score"))):
        if rank == 1 and table.row_count:
            table.add_section()
        table.add_row(item if rank == 1 else "", str(rank), user, f"{score:.4f}")
    _print(table)


def _print_table(columns: dict[str, list[Any]]) -> None:
    from rich.table import Table

    explained = "because" in columns
    table = Table("user", "rank", "item", "title", "score", *(["IDs", "features", "because of"] if explained else []))
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    for before, row in zip([None, *rows], rows):
        first = before is None or before["row"] != row["row"]
        if first and before is not None:
            table.add_section()
        user = row["user_id"] + ("" if row["known_user"] else " (unknown)") if first else ""
        reasons = _reasons(row) if explained else []
        table.add_row(user, str(row["rank"]), row["item_id"], row["title"], f"{row['score']:.4f}", *reasons)
    _print(table)


def _print_empty(number: int, asked: str, columns: dict[str, list[Any]]) -> None:
    """Say how many lists are empty: a table alone does not show them."""
    empty = number - columns["rank"].count(1)
    if empty:
        print(f"{empty} of {number} {asked} have none: nothing is left to recommend")


def _print_left_out(model: "ServedModel", config: RecommendConfig) -> None:
    """Say which of the items that options name are none of the model: no list can show them."""
    known = set(model.item_ids)
    for name in ("items", "exclude"):
        unknown = [item for item in getattr(config, name) if item not in known]
        if unknown:
            print(f"{name}: {unknown_of(unknown)}, left out")


def _reasons(row: dict[str, Any]) -> list[str]:
    """What IDs and features contribute to the score, where it is the sum of both, and the similar items."""
    parts = [row["score_from_ids"], row["score_from_features"]]
    return [*("-" if part is None else f"{part:.4f}" for part in parts), ", ".join(row["because"])]


def _print(table: "Table") -> None:
    from rich.console import Console

    # Ids and titles come from the data: they are printed as they are, never as markup, and in a pipe on one line each.
    width = None if sys.stdout.isatty() else _ANY_WIDTH
    Console(markup=False, highlight=False, emoji=False, width=width).print(table)
