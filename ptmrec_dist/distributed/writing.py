"""Files that ranks write: where one cannot, all end with its reason, so that none waits for it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from ptmrec_dist.distributed.collectives import gather_rows
from ptmrec_dist.distributed.world import World
from ptmrec_dist.errors import Fault, UserError, first_line


@contextmanager
def writing(world: World, what: str, kept: str, fresh: Path | None = None) -> Iterator[None]:
    """Let some ranks write files, and raise an error of one of them on all ranks at the end.

    Collective: every rank must enter this; a rank that cannot write takes part in all collectives inside before it raises.

    Args:
        world: This rank and its peers.
        what: What is written.
        kept: What is not harmed if it fails.
        fresh: Folder to remove on the rank that fails.

    Yields:
        Nothing.

    Raises:
        UserError: A rank found a mistake in the input.
        Fault: A rank could not write (a full disk, a folder that is gone).
    """
    failure: UserError | Fault | None = None
    try:
        yield
    except (UserError, Fault) as error:
        failure = error
    except (OSError, SafetensorError) as error:
        failure = Fault(
            f"cannot write {what} ({first_line(error)}); {kept}; make room if the disk is full, and run the same command again"
        )
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
    line = b"" if failure is None else f"{type(failure).__name__}: {failure}\n".encode()
    lines = gather_rows(torch.tensor(list(line), dtype=torch.uint8, device=world.device))
    if failure is not None:
        raise failure
    for kind, _, message in (found.partition(": ") for found in bytes(lines.tolist()).decode().splitlines()):
        raise UserError(message) if kind == UserError.__name__ else Fault(message)
