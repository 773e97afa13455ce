"""Digests of a folder's files: verify that a model is loaded as it was registered."""

import hashlib
import json
from pathlib import Path

from ptmrec_dist.errors import UserError
from ptmrec_dist.files import read_json, sha256

FILE_NAME = "digests.json"


def write_digests(folder: Path) -> None:
    """Write `digests.json` beside the files that it covers; call this when they are complete.

    Args:
        folder: Folder of a served model.
    """
    (folder / FILE_NAME).write_text(json.dumps(_digests_of(folder), indent=1))


def check_digests(folder: Path) -> None:
    """Compare every file with its entry in `digests.json`.

    Args:
        folder: Folder of a served model.

    Raises:
        UserError: A file was changed, added or removed since the model was written.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise UserError(f"model: {folder} has no {FILE_NAME}; register the run again")
    recorded, found = read_json(path, "model"), _digests_of(folder)
    for name in sorted(recorded.keys() | found.keys()):
        if recorded.get(name) != found.get(name):
            expected = str(recorded.get(name, "no such file"))[:12]
            raise UserError(
                f"model: {name} is {found.get(name, 'absent')[:12]}, expected {expected}: "
                f"{folder} was changed after it was written; register the run again"
            )


def tree_digest(folder: Path, but: str = "") -> str:
    """Compute one digest over all files of a folder, their names and their content.

    Args:
        folder: Any folder.
        but: Name of a file to ignore.

    Returns:
        sha256 in hexadecimal.
    """
    digests = {name: digest for name, digest in _digests_of(folder).items() if name != but}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _digests_of(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files if path != folder / FILE_NAME}
