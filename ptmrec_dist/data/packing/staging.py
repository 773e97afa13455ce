"""Check of what `ptmrec pack` may replace."""

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
