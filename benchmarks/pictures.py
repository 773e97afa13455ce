"""Pictures per second: what `pack` does to large JPEGs, beside the bare library calls, in one process of one thread.

    python -m benchmarks.pictures

`bare` is Pillow's decoding at a reduced size, its bicubic resize and its encoding; `whole` decodes every pixel first. The three
are measured in turn, several times, in CPU seconds; medians are printed, and how far the pixels of `pack` are from those of
`whole`.
"""

import io
import tempfile
import time
from pathlib import Path
from statistics import median

import jsonargparse
import numpy as np
from PIL import Image

from ptmrec_dist.data.packing.images import Limits, prepare_image

SIDE = 224
LIMITS = Limits(shorter_side=SIDE, pixels=100_000_000, aspect_ratio=10)


def main(width: int = 1000, height: int = 1500, pictures: int = 8, repeats: int = 5) -> None:
    """Measure and print a table.

    Args:
        width: Pixels of a picture.
        height: Pixels of a picture.
        pictures: Number of pictures.
        repeats: Times that each way is measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = [_write(Path(folder) / f"{number}.jpg", width, height, number) for number in range(pictures)]
        ways = {"pack": _pack, "bare": lambda path: _bare(path, SIDE), "whole": lambda path: _bare(path, None)}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                started = time.process_time()
                for path in paths:
                    way(path)
                seconds[name].append((time.process_time() - started) / pictures)
        differences = [np.abs(_levels(_pack(path)) - _levels(_bare(path, None))) for path in paths]
    print("| way | pictures per second | relative to bare |\n| --- | --- | --- |")
    for name, found in seconds.items():
        print(f"| {name} | {1 / median(found):.0f} | {median(seconds['bare']) / median(found):.0%} |")
    mean, largest = np.mean([table.mean() for table in differences]), max(table.max() for table in differences)
    print(f"pack against whole, levels of 255: mean {mean:.2f}, largest {largest:.0f}")


def _write(path: Path, width: int, height: int, seed: int) -> Path:
    """A picture of shapes of many sizes and noise."""
    rng = np.random.default_rng(seed)
    levels = rng.normal(0, 6, (height, width, 1)).repeat(3, axis=2)
    for cells in (3, 9, 27, 81, 243):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        levels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float) / 5
    Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def _pack(path: Path) -> bytes:
    return prepare_image(str(path), LIMITS)


def _bare(path: Path, side: int | None) -> bytes:
    with Image.open(path) as image:
        scale = SIDE / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        found = image.draft(None, size) if side else None
        box = found[1] if found else None
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.BICUBIC, box).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()


def _levels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), dtype=float)


if __name__ == "__main__":
    jsonargparse.CLI(main)
