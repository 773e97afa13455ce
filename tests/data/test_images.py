"""What is stored for an image."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from ptmrec_dist.data.decoding import BadImageError
from ptmrec_dist.data.packing.images import Limits, prepare_image

_LIMITS = Limits(shorter_side=32, pixels=1_000_000, aspect_ratio=50)


def _picture(width: int, height: int) -> Image.Image:
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(ramp.astype(np.uint8))


def _stored(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(prepare_image(str(path), _LIMITS)))


def test_a_small_rgb_jpeg_keeps_its_bytes(tmp_path: Path) -> None:
    _picture(40, 32).save(tmp_path / "a.jpg")
    assert prepare_image(str(tmp_path / "a.jpg"), _LIMITS) == (tmp_path / "a.jpg").read_bytes()


@pytest.mark.parametrize(("size", "expected"), [((128, 64), (64, 32)), ((64, 200), (32, 100)), ((20, 90), (20, 90))])
def test_the_shorter_side_is_reduced_and_never_enlarged(size: tuple, expected: tuple, tmp_path: Path) -> None:
    _picture(*size).save(tmp_path / "a.png")
    assert _stored(tmp_path / "a.png").size == expected


def test_a_reduced_image_looks_like_the_original(tmp_path: Path) -> None:
    picture = _picture(128, 64)
    picture.save(tmp_path / "a.png")
    expected = picture.resize((64, 32), Image.Resampling.BICUBIC)
    difference = np.asarray(_stored(tmp_path / "a.png"), dtype=float) - np.asarray(expected, dtype=float)
    assert np.abs(difference).mean() < 2


def test_a_photograph_lying_on_its_side_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture = Image.new("RGB", (30, 20), "black")
    picture.paste("white", (0, 0, 15, 20))
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    stored = _stored(tmp_path / "a.jpg")
    assert stored.size == (20, 30)
    assert stored.getpixel((10, 3))[0] > 240
    assert stored.getpixel((10, 26))[0] < 15
    assert stored.getexif().get(0x0112, 1) == 1


def _photograph(width: int, height: int) -> Image.Image:
    """Gray shapes of several sizes with noise on them, which is hard on a decoder that leaves details out."""
    rng = np.random.default_rng(0)
    levels = rng.normal(0, 8, (height, width))
    for cells in (2, 6, 16):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        levels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float) / 3
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("size", [(301, 200), (64, 97), (65, 65), (150, 400)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_stored_as_if_it_had_been_decoded_at_its_full_size(
    size: tuple[int, int], orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    _photograph(*size).save(tmp_path / "a.jpg", exif=exif, quality=90)
    with Image.open(tmp_path / "a.jpg") as image:
        whole = ImageOps.exif_transpose(image)
    scale = 32 / min(size)
    expected = whole.resize(tuple(round(side * scale) for side in whole.size), Image.Resampling.BICUBIC)
    stored = _stored(tmp_path / "a.jpg")
    assert stored.size == expected.size
    difference = np.abs(np.asarray(stored, dtype=float) - np.asarray(expected, dtype=float))
    assert difference.mean() < 2.5  # levels; 1 of them is what storing as JPEG changes, every second pixel is off by 7
    assert difference.max() < 16


def test_transparency_shows_white(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert min(_stored(tmp_path / "a.png").getpixel((10, 10))) > 250


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA"])
def test_every_colour_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    _picture(20, 20).convert(mode).save(path)
    stored = _stored(path)
    assert (stored.format, stored.mode, stored.size) == ("JPEG", "RGB", (20, 20))


@pytest.mark.parametrize("size", [(200, 200), (300, 32)])
def test_a_truncated_image_is_an_error_though_its_header_is_sound(size: tuple, tmp_path: Path) -> None:
    _picture(*size).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    assert Image.open(tmp_path / "a.jpg").size == size
    with pytest.raises(BadImageError, match="truncated"):
        prepare_image(str(tmp_path / "a.jpg"), _LIMITS)


def test_a_16_bit_image_is_stored_like_its_8_bit_twin(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 32 * 40).astype(np.uint16).reshape(32, 40)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray((ramp / 257).round().astype(np.uint8)).save(tmp_path / "twin.png")
    deep, twin = (np.asarray(_stored(tmp_path / name)).astype(int) for name in ("deep.png", "twin.png"))
    assert np.abs(deep - twin).max() <= 2
    assert len(np.unique(deep)) > 190


def test_the_aspect_ratio_that_is_set_is_the_bound(tmp_path: Path) -> None:
    Image.new("L", (100, 2)).save(tmp_path / "a.png")
    Image.new("L", (101, 2)).save(tmp_path / "b.png")
    assert _stored(tmp_path / "a.png").size == (100, 2)
    with pytest.raises(BadImageError, match="too long and thin: 101 x 2 pixels, one side over 50 times the other"):
        prepare_image(str(tmp_path / "b.png"), _LIMITS)
