"""Permissions of files that bind root, too, whom the kernel lets read and write everything unless it gives that up."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION = 0x20080522  # of the structures below, see capget(2)
_OVERRIDES = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Words(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Let the permissions of files bind this thread while the block runs, whoever runs it."""
    system, header, words = ctypes.CDLL(None, use_errno=True), _Header(_VERSION, 0), (_Words * 2)()
    assert system.capget(ctypes.byref(header), words) == 0
    before = words[0].effective
    words[0].effective = before & ~_OVERRIDES
    assert system.capset(ctypes.byref(header), words) == 0
    try:
        yield
    finally:
        words[0].effective = before
        assert system.capset(ctypes.byref(header), words) == 0
