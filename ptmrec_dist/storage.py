"""Inputs in object storage: what a URL names is copied to a cache on this machine before a command starts.

A copy is never changed: its path depends on the names, sizes and versions of the files, as the storage lists them, so a run
keeps what it reads when the originals are replaced. Files are fetched once, also where several copies contain them.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from ptmrec_dist.errors import Fault, UserError, on_one_line
from ptmrec_dist.files import UNFINISHED, link_or_copy, replacing, staged
from ptmrec_dist.lock import one_at_a_time
from ptmrec_dist.progress import Progress

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CACHE_VARIABLE = "PTMREC_CACHE"
"""Environment variable: folder of the copies; by default `ptmrec` in `XDG_CACHE_HOME`, or in `~/.cache`."""

_READ = ("items", "images", "interactions", "shards", "features", "image_npy", "text_npy", "reuse")
"""Settings that may be URLs, in whichever command has them."""
_PACKAGES = {"s3": "ptmrec-dist[s3]", "gs": "gcsfs", "hf": "huggingface_hub", "memory": "fsspec"}
"""Scheme to what has to be installed for it."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?:/+(.*))?", re.DOTALL)  # a Path keeps at most one of the slashes
_TOGETHER = 64
"""Files of one request to the file system, which may fetch them concurrently."""

_Settings = TypeVar("_Settings")


@dataclass(frozen=True)
class _File:
    remote: str
    size: int | None
    version: str
    """Digest of all that the storage lists of the file: its time, or the digest of its content."""


def with_local_copies(settings: _Settings) -> _Settings:
    """Copy the inputs of a command that are URLs to this machine.

    Every rank may call this: one process of a machine copies, the others wait for it.

    Args:
        settings: Settings of a command.

    Returns:
        The settings, with paths of the copies in the place of URLs.

    Raises:
        UserError: A URL where a local path is needed, of a scheme that is not read, or at which there is nothing to read.
        Fault: The storage was lost while files were copied.
    """
    urls: dict[str, str] = {}
    for item in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, item.name)
        for path in value if isinstance(value, tuple) else (value,):
            url = _url_of(path)
            if url is not None:
                _check(url, item.name)
                urls[item.name] = url
    copies: dict[str, Any] = {name: _local_copy(url, name) for name, url in urls.items()}
    return replace(settings, **copies) if copies else settings  # type: ignore[type-var]


def is_url(path: Path) -> bool:
    """Return whether a path is a URL, which `with_local_copies` replaces.

    Args:
        path: A setting of a command.

    Returns:
        Whether it is.
    """
    return _url_of(path) is not None


def _url_of(value: object) -> str | None:
    found = _URL.fullmatch(str(value)) if isinstance(value, Path) else None
    return None if found is None else f"{found[1].lower()}://{found[2] or ''}"


def _check(url: str, option: str) -> None:
    if option not in _READ:
        raise UserError(
            f"{option}: got {url}, expected a local path; URLs are read for {', '.join(_READ)} only: copy what is there, or "
            "write to a local folder and copy it afterwards"
        )
    if url.partition("://")[0] not in _PACKAGES or "::" in url:
        schemes = ", ".join(f"{scheme}://" for scheme in _PACKAGES)
        raise UserError(f"{option}: got {url}, expected a local path or a URL of {schemes}; download it first")


def _local_copy(url: str, option: str) -> Path:
    file_system, root = _opened(url, option)
    files = _listed(file_system, root, url, option)
    name = PurePosixPath(root).name
    content = json.dumps([url, sorted((inside, file.size, file.version) for inside, file in files.items())])
    cache = _cache_folder(option)
    copy = cache / "copies" / hashlib.sha256(content.encode()).hexdigest()[:32] / name
    with one_at_a_time(cache):
        if not copy.exists():
            objects = {inside: cache / "files" / file.version[:2] / file.version for inside, file in files.items()}
            _fetch(file_system, {objects[inside]: file for inside, file in files.items()}, f"{option} from {url}")
            _assemble(copy, objects)
    return copy


def _opened(url: str, option: str) -> "tuple[AbstractFileSystem, str]":
    import fsspec

    scheme = url.partition("://")[0]
    try:
        file_system: AbstractFileSystem = fsspec.filesystem(scheme)
    except ImportError as error:
        raise UserError(
            f"{option}: {url} needs a package that is missing; pip install '{_PACKAGES[scheme]}'"
        ) from error
    root = str(file_system._strip_protocol(url)).rstrip("/")
    if not PurePosixPath(root).name:
        raise UserError(f"{option}: got {url}, expected the path of a file or folder in it")
    return file_system, root


def _listed(file_system: "AbstractFileSystem", root: str, url: str, option: str) -> dict[str, _File]:
    """The files below a path by their paths inside it; that of a file itself is empty."""
    try:
        found: dict[str, dict[str, Any]] = file_system.find(root, detail=True)
    except Exception as error:  # each storage has errors of its own: of credentials, addresses, buckets
        raise UserError(
            f"{option}: cannot list {url} ({_reason(error)}); expected a file or folder that this machine may read"
        ) from error
    files = {}
    for remote, detail in found.items():
        inside = remote.removeprefix(root).removeprefix("/")
        if remote.endswith("/"):
            continue  # a marker of an empty folder
        if inside and not all(part not in ("", ".", "..") for part in inside.split("/")):
            raise UserError(f"{option}: {url} has a file {inside!r}, which cannot be a local one; rename or remove it")
        listed = json.dumps([remote, sorted((key, str(value)) for key, value in detail.items())])
        version = hashlib.sha256(f"{url.partition('://')[0]}:{listed}".encode()).hexdigest()
        files[inside] = _File(remote, detail.get("size"), version)
    if not files:
        raise UserError(f"{option}: there is no file at {url}; expected a file or a folder with files")
    return files


def _cache_folder(option: str) -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    cache = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptmrec"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{option}: cannot make the cache {cache} ({error.strerror}); set {CACHE_VARIABLE}") from error
    return cache.resolve()


def _fetch(file_system: "AbstractFileSystem", wanted: Mapping[Path, _File], label: str) -> None:
    """Fetch the files that are not in the cache, each atomically: after an interruption the others are fetched."""
    missing = [(path, file) for path, file in wanted.items() if not path.exists()]
    total = sum(file.size or 0 for _, file in missing)
    with Progress(total=total, desc=label, unit="B", unit_scale=True) as bar:
        for start in range(0, len(missing), _TOGETHER):
            for size in _fetch_together(file_system, missing[start : start + _TOGETHER], label):
                bar.update(size)


def _fetch_together(file_system: "AbstractFileSystem", batch: list[tuple[Path, _File]], label: str) -> Iterator[int]:
    fresh = [path.with_name(path.name + UNFINISHED) for path, _ in batch]
    try:
        for path in fresh:
            path.parent.mkdir(parents=True, exist_ok=True)
        file_system.get([file.remote for _, file in batch], [str(path) for path in fresh])
        for part, (path, file) in zip(fresh, batch, strict=True):
            size = part.stat().st_size
            if file.size is not None and size != file.size:
                raise OSError(f"{file.remote} has {size} bytes, but was listed with {file.size}")
            os.replace(part, path)
            yield size
    except Exception as error:  # as above, and those of the disk
        raise Fault(
            f"{label}: copying failed ({_reason(error)}); run the command again: what was copied is kept"
        ) from error
    finally:
        for part in fresh:
            part.unlink(missing_ok=True)


def _assemble(copy: Path, objects: Mapping[str, Path]) -> None:
    """Give the fetched files their names; a file is its own copy."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    if "" in objects:
        with replacing(copy) as fresh:
            link_or_copy(objects[""], fresh)
        return
    with staged(copy) as fresh:
        for inside, path in objects.items():
            (fresh / inside).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, fresh / inside)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {on_one_line(error)[:200]}"
