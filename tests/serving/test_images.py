"""Decoding the images of requests."""

import io

import numpy as np
import pytest
from PIL import Image

from ptmrec_dist.errors import UserError
from ptmrec_dist.serving.images import read_image
from tests.resident_memory import memory_below


def _sent(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_bytes_that_are_no_picture_get_one_line(data):
    with pytest.raises(UserError, match="cannot be decoded"):
        read_image(data)


@pytest.mark.parametrize(("size", "kind"), [((60_000, 1), "PNG"), ((1, 60_000), "PNG"), ((30_000, 2), "JPEG")])
def test_long_thin_picture_costs_no_memory(size, kind):
    data = _sent(Image.new("L", size), kind)
    with memory_below(20_000_000), pytest.raises(UserError, match="too long and thin"):
        read_image(data)


def test_picture_of_too_many_pixels_costs_no_memory():
    data = _sent(Image.new("1", (8000, 8000)))
    with memory_below(20_000_000), pytest.raises(UserError, match="too many pixels: 8000 x 8000"):
        read_image(data)


def test_16_bit_picture_is_read_like_its_8_bit_twin():
    ramp = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    read = np.asarray(read_image(_sent(Image.fromarray(ramp)))).astype(int)
    assert np.abs(read[:, :, 0] - ramp / 257).max() <= 1


def test_picture_can_be_used_once_it_is_read():
    assert np.asarray(read_image(_sent(Image.new("RGB", (20, 10), "red"), "JPEG"))).shape == (10, 20, 3)
    assert read_image(_sent(Image.new("RGBA", (20, 10)))).resize((4, 4)).getpixel((1, 1)) == (255, 255, 255)
