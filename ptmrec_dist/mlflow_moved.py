"""Updates a local MLflow store that was moved or copied: MLflow records files by absolute URIs.

The files of a store in SQLite lie in `mlartifacts` beside the database. A record that names a folder of this name elsewhere
predates the move if that folder no longer exists, or if it belongs to another database: the one that this is a copy of.
"""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

log = logging.getLogger(__name__)

_FOLDER = "mlartifacts"
_COLUMNS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}
"""Tables of MLflow and the column in each that holds a URI of files."""


def files_beside(database: Path) -> Path:
    """Get the folder of a store's files.

    Args:
        database: SQLite file.

    Returns:
        The folder.
    """
    return database.parent / _FOLDER


def follow_move(database: Path) -> None:
    """Update the records of a store that was moved or copied to the files beside it.

    Args:
        database: SQLite file; nothing happens if it does not exist or has no files beside it.

    Raises:
        sqlite3.Error: The database cannot be read or written.
    """
    folder = files_beside(database)
    if not database.is_file() or not folder.is_dir():
        return
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not _COLUMNS.keys() <= tables:  # MLflow has not created them yet
            return
        locations = [uri for (uri,) in connection.execute("SELECT artifact_location FROM experiments")]
        for before in sorted({uri for uri in locations if uri and _is_outdated(uri, database)}):
            with connection:  # one transaction
                for table, column in _COLUMNS.items():
                    connection.execute(
                        f"UPDATE {table} SET {column} = :now || substr({column}, length(:before) + 1) "
                        f"WHERE {column} = :before OR substr({column}, 1, length(:before) + 1) = :before || '/'",
                        {"now": folder.as_uri(), "before": before},
                    )
            log.warning("MLflow: the store was moved; its records now name the files in %s, not %s", folder, before)


def _is_outdated(uri: str, database: Path) -> bool:
    parsed = urlparse(uri)
    folder = Path(unquote(parsed.path))
    if parsed.scheme not in ("", "file") or folder.name != _FOLDER or folder == files_beside(database):
        return False
    return not folder.exists() or (folder.parent / database.name).is_file()
