"""Images of any bytes: a JPEG within the limits, or a refusal."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptmrec_dist.data.decoding import BadImageError
from ptmrec_dist.data.packing.images import Limits, prepare_image
from ptmrec_dist.doctor.images import look_at
from tests.hostile.cases import damaged, for_all

_LIMITS = Limits(shorter_side=32, pixels=1_000_000, aspect_ratio=50.0)
_MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "P", "I;16", "1", "LA"),
    "GIF": ("P",),
    "TIFF": ("RGB", "I;16", "F", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("RGB", "P"),
    "ICO": ("RGBA",),
    "PPM": ("RGB", "I"),
    "TGA": ("RGB",),
    "JPEG2000": ("RGB",),
}


def _originals() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = []
    for kind, modes in _MODES.items():
        for mode in modes:
            buffer = io.BytesIO()
            Image.fromarray(pixels).convert("L" if mode == "I;16" else mode).convert(mode).save(buffer, kind)
            found.append(buffer.getvalue())
    return found


@pytest.mark.filterwarnings("ignore")
def test_an_image_of_any_bytes_is_a_small_jpeg_or_refused(cases: int, tmp_path: Path) -> None:
    path = tmp_path / "image"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        refused, stored = _prepared(path)
        if refused:
            assert len(refused.splitlines()) == 1
        else:
            with Image.open(io.BytesIO(stored)) as image:
                assert (image.format, image.mode) == ("JPEG", "RGB")
                assert min(image.size) <= _LIMITS.shorter_side
        (problem,) = look_at([str(path)], _LIMITS, None)["problem"]
        assert isinstance(problem, str)
        assert list(tmp_path.iterdir()) == [path]

    for_all(damaged(_originals()), check, cases)


def _prepared(path: Path) -> tuple[str, bytes]:
    try:
        return "", prepare_image(str(path), _LIMITS)
    except BadImageError as bad:
        return str(bad), b""
