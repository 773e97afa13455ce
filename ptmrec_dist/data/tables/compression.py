"""Files as streams of bytes, whether compressed or not: what a file begins with decides, not its name."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Endings that follow that of the format."""
_GZIP, _BZIP2, _XZ, _ZSTD, _ZIP = b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
_OPENED_BY_POLARS = (_GZIP, _ZSTD)


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that may be compressed by gzip, bzip2, xz, zstd or zip, or be text in UTF-16.

    Args:
        path: The file; of a zip archive, the only file in it.

    Yields:
        Its content, uncompressed; text in UTF-16 becomes UTF-8.

    Raises:
        OSError: It cannot be read or uncompressed, or is an archive of several files.
        EOFError: It is cut off.
    """
    with path.open("rb") as file:
        magic = _magic(file)
        try:
            content = cast(io.BufferedReader, _OPENERS[magic](file)) if magic else file
            yield _in_utf8(content)
        except (zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError) as error:
            raise OSError(f"a damaged compressed file: {error}") from error


def without_compression(name: str) -> str:
    """Drop the ending of a file name that says how the file is compressed.

    Args:
        name: The name.

    Returns:
        It without the ending, if it has one.
    """
    return next((name.removesuffix(ending) for ending in COMPRESSED if name.endswith(ending)), name)


def for_polars(path: Path) -> Path | io.BytesIO:
    """Return what polars reads a file from: it uncompresses gzip and zstd itself.

    Args:
        path: The file.

    Returns:
        The path, or the content in memory where polars cannot open the file.

    Raises:
        OSError: It cannot be uncompressed.
        EOFError: It is cut off.
    """
    with path.open("rb") as file:
        opened = _magic(file) in (b"", *_OPENED_BY_POLARS)
    with open_bytes(path) as content:
        converted = isinstance(content, io.BytesIO)
        return path if opened and not converted else io.BytesIO(content.read())


def _magic(file: io.BufferedReader) -> bytes:
    """The key of `_OPENERS` that a file begins with; empty if none."""
    start = file.peek(4)
    return next((magic for magic in _OPENERS if start.startswith(magic)), b"")


def _in_utf8(content: io.BufferedReader) -> IO[bytes]:
    if content.peek(2)[:2] not in (BOM_UTF16_LE, BOM_UTF16_BE):
        return content
    try:
        return io.BytesIO(content.read().decode("utf-16").encode())
    except UnicodeError as error:
        raise OSError(f"begins as UTF-16 does, but is none: {error}") from error


def _open_zstd(file: IO[bytes]) -> io.BufferedReader:
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))


def _open_zip(file: IO[bytes]) -> IO[bytes]:
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise OSError(f"a zip archive of {len(names)} files, expected one; unpack it")
    try:
        return archive.open(names[0])
    except RuntimeError as error:  # encrypted
        raise OSError(str(error)) from error


_OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    _GZIP: lambda file: gzip.GzipFile(fileobj=file),
    _BZIP2: bz2.BZ2File,
    _XZ: lzma.LZMAFile,
    _ZSTD: _open_zstd,
    _ZIP: _open_zip,
}
"""What a compressed file begins with, to what uncompresses it."""
