"""The tables of a catalogue in a folder: by their names, or else by their columns."""

from pathlib import Path

from ptmrec_dist.config import DoctorConfig
from ptmrec_dist.data.tables.formats import format_of
from ptmrec_dist.data.tables.reading import Table
from ptmrec_dist.errors import UserError


def find_interactions(folder: Path, config: DoctorConfig) -> Path | None:
    """Find the interactions of a folder: `interactions.*`, RecBole's `*.inter`, or the only table with users.

    Args:
        folder: Folder.
        config: Names of the columns.

    Returns:
        The table, if there is one.
    """
    named = _named(folder, "interactions", ".inter")
    return named or _only([path for path in tables_in(folder) if _has_users(path, config)])


def find_items(folder: Path, config: DoctorConfig) -> Path | None:
    """Find the catalogue of a folder: `items.*`, RecBole's `*.item`, or the only table with items that have content.

    Args:
        folder: Folder.
        config: Names of the columns.

    Returns:
        The table, if there is one.
    """
    item = config.columns.items_id or config.columns.item
    content = {config.columns.image, *config.columns.text}
    having = {path: _columns(path, config) for path in tables_in(folder)}
    described = [path for path, columns in having.items() if item in columns and content & columns]
    named = _named(folder, "items", ".item")
    return named or _only([path for path in described if not _has_users(path, config)])


def _named(folder: Path, name: str, atomic: str) -> Path | None:
    tables = tables_in(folder)
    return next((path for path in tables if path.name.split(".")[0] == name or path.suffix == atomic), None)


def tables_in(folder: Path) -> list[Path]:
    """List the files of a folder that may be tables.

    Args:
        folder: Folder.

    Returns:
        Files in one of the formats that `ptmrec pack` reads, in alphabetical order.
    """
    return [path for path in sorted(folder.glob("*")) if path.is_file() and format_of(path, None, True) is not None]


def _has_users(path: Path, config: DoctorConfig) -> bool:
    columns = _columns(path, config)
    return bool({config.columns.user, "userID"} & columns and {config.columns.item, "itemID"} & columns)


def _columns(path: Path, config: DoctorConfig) -> set[str]:
    try:
        return set(Table(path, "interactions", config.separator, config.header).columns)
    except UserError:
        return set()


def _only(tables: list[Path]) -> Path | None:
    return tables[0] if len(tables) == 1 else None
