"""A data set's folder is replaced in one go: built in a sibling, swapped in when complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ptmrec_dist.data.manifest import FILE_NAME, Manifest
from ptmrec_dist.errors import UserError


def check_replaceable(out: Path) -> None:
    """Refuse to replace anything that is not a packed data set.

    Args:
        out: Folder about to be written.

    Raises:
        UserError: It is a file, or a folder with something else in it.
    """
    remedy = "choose another --out or remove it yourself"
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} is a file, expected a folder; {remedy}")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        shards = {shard.name for shard in Manifest.read(out).shards}
    except UserError as error:
        raise UserError(f"out: {out} is not empty and not a packed data set; {remedy}") from error
    ours = {FILE_NAME, "items.parquet", "users.parquet", "interactions"} | shards
    foreign = sorted({path.name for path in out.iterdir()} - ours)
    if foreign:
        raise UserError(f"out: {out} also holds {foreign[0]!r}, which replacing it would delete; {remedy}")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Build a folder beside the one that it is to become.

    Args:
        out: Folder to write; what is there is replaced only if the block ends well.

    Yields:
        An empty sibling folder to write into.

    Raises:
        UserError: The folder cannot be made.
    """
    fresh, old = (out.with_name(f".{out.name}.{state}") for state in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
    try:
        fresh.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"out: cannot write to {out.parent} ({error.strerror}); choose another --out") from error
    try:
        yield fresh
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(out, old)
        os.replace(fresh, out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
