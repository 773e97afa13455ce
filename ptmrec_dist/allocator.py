"""Settings of the C library's allocator."""

import ctypes

# The numbers of glibc's malloc.h; other C libraries lack the function or answer 0.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Keep large freed blocks for reuse by the next step instead of returning them to the system.

    Every step of a large model allocates the same tables, and page faults on fresh memory cost more than the arithmetic (VBPR
    with 4,480 features per item trains in half the time without them). Has no effect where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
