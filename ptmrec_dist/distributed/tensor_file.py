"""Safetensors files written block by block, so that a model need never be whole in memory; the library wants all at once.

Equal contents give equal bytes, on which fingerprints rely; the library writes metadata in a random order.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length of the header, a JSON header with dtype, shape
and offsets of each tensor, and the data without gaps.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ptmrec_dist.files import replacing

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Piece:
    """A tensor that is put together when it is written."""

    name: str
    """Its name in the file."""
    shape: tuple[int, ...]
    """Its shape."""
    dtype: torch.dtype
    """Its dtype."""
    blocks: Callable[[], Iterator[Tensor]]
    """Yields the tensor, on any device, as one block or as consecutive blocks of its first dimension; may be collective."""

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


def write_pieces(path: Path | None, pieces: Iterable[Piece], metadata: dict[str, str] | None = None) -> None:
    """Write tensors one after the other.

    Collective where a piece is: every rank must call this, with the same pieces. A rank that cannot write still helps to put
    the others together, and raises at the end, so that no rank waits for it.

    Args:
        path: File to write; None on a rank that only helps.
        pieces: Tensors.
        metadata: Strings to store beside them.

    Raises:
        OSError: It could not be written.
    """
    # As the library sorts them: every tensor then begins at a multiple of its element's size.
    ordered = sorted(pieces, key=lambda piece: (-piece.dtype.itemsize, piece.name))
    failure: OSError | None = None
    with ExitStack() as stack:
        file: BinaryIO | None = None
        try:
            if path is not None:
                file = stack.enter_context(path.open("wb"))
                file.write(_header(ordered, metadata))
        except OSError as error:
            failure = error
        for piece in ordered:
            written = 0
            for block in piece.blocks():
                try:
                    if file is not None and failure is None:
                        written += _append(file, block)
                except OSError as error:
                    failure = error
            assert file is None or failure is not None or written == piece.num_bytes, piece.name
    if failure is not None:
        raise failure


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, atomically; equal tensors and metadata give equal bytes.

    Args:
        path: File to write.
        tensors: Name to tensor, on any device.
        metadata: Strings to store beside them.
    """
    save_pieces(path, pieces_of(tensors), metadata)


def save_pieces(path: Path | None, pieces: Iterable[Piece], metadata: dict[str, str] | None = None) -> None:
    """Write tensors one after the other, atomically.

    Collective where a piece is, as for `write_pieces`.

    Args:
        path: File to write; None on a rank that only helps.
        pieces: Tensors.
        metadata: Strings to store beside them.
    """
    with nullcontext() if path is None else replacing(path) as fresh:
        write_pieces(fresh, pieces, metadata)


def pieces_of(tensors: Mapping[str, Tensor]) -> list[Piece]:
    """Describe tensors that this process has whole.

    Args:
        tensors: Name in the file to tensor.

    Returns:
        The pieces.
    """
    return [Piece(name, tuple(value.shape), value.dtype, partial(iter, (value,))) for name, value in tensors.items()]


def _header(ordered: list[Piece], metadata: dict[str, str] | None) -> bytes:
    described: dict[str, object] = {} if metadata is None else {"__metadata__": dict(sorted(metadata.items()))}
    start = 0
    for piece in ordered:
        end = start + piece.num_bytes
        described[piece.name] = {"dtype": _NAMES[piece.dtype], "shape": piece.shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _append(file: BinaryIO, block: Tensor) -> int:
    return file.write(block.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
