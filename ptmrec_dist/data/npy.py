"""Arrays in NumPy's format from files that are not trusted."""

from pathlib import Path

import numpy as np

from ptmrec_dist.errors import on_one_line


def open_npy(path: Path) -> np.ndarray:
    """Open an array without reading it into memory.

    Args:
        path: `.npy` file.

    Returns:
        A read-only memory map.

    Raises:
        ValueError: The file cannot be read, or holds no single array of plain values; says why, on one line.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header fails in Python's parser in many ways
        # What is no array NumPy takes for a pickle, and its message says how to load one, which is unsafe.
        pickled = "pickle" in str(error)
        raise ValueError("it is no array of numbers" if pickled else on_one_line(error)) from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError("it is an archive, expected one array")
    return found
