"""Images of every mode and shape, as 8-bit RGB or as one line."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ptmrec_dist.data.decoding import BadImageError, decoded, to_rgb
from tests.resident_memory import memory_below

_RAMP = np.linspace(0, 65535, 30 * 40).astype(np.uint16).reshape(30, 40)
_TWIN = np.round(_RAMP / 257).astype(int)
_OPAQUE = np.full_like(_RAMP, 65535)


def _read(data: bytes) -> np.ndarray:
    with decoded(io.BytesIO(data)) as image:
        rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    return np.asarray(rgb).astype(int)


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png(width: int, height: int, *, bits: int = 8, colour: int = 0, rows: bytes = b"", extra: bytes = b"") -> bytes:
    """A PNG file by the standard; PIL cannot write all of them."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + extra + _chunk(b"IDAT", zlib.compress(rows or b"\0" * 9)) + _chunk(b"IEND", b"")
    )


def _sixteen_bit_png(channels: np.ndarray, colour: int) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in channels)
    return _png(channels.shape[1], channels.shape[0], bits=16, colour=colour, rows=rows)


def _tiff(values: bytes, bits: int, white_is_zero: bool = False) -> bytes:
    """A gray little-endian TIFF of 40 x 30 pixels."""
    tags = [(256, 40), (257, 30), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 8), (277, 1)]
    tags += [(278, 30), (279, len(values))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def _twelve_bits() -> bytes:
    pairs = (_RAMP >> 4).reshape(-1, 2).astype(int)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    return packed.astype(np.uint8).tobytes()


_DEEP = {
    "png": _file(Image.fromarray(_RAMP), "PNG"),
    "tiff": _file(Image.fromarray(_RAMP), "TIFF"),
    "big-endian tiff": _file(Image.frombytes("I;16B", (40, 30), _RAMP.astype(">u2").tobytes()), "TIFF"),
    "jpeg 2000": _file(Image.fromarray(_RAMP), "JPEG2000"),
    "pgm": _file(Image.fromarray(_RAMP), "PPM"),
    "pgm of 12 bits": b"P5 40 30 4095\n" + (_RAMP >> 4).astype(">u2").tobytes(),
    "tiff of 12 bits": _tiff(_twelve_bits(), 12),
    "tiff where white is zero": _tiff((65535 - _RAMP).tobytes(), 16, white_is_zero=True),
    "32-bit integers": _file(Image.fromarray(_RAMP.astype(np.int32)), "TIFF"),
    "negative integers": _file(Image.fromarray(_RAMP.astype(np.int32) * 5 - 100_000), "TIFF"),
    "floats": _file(Image.fromarray(_RAMP.astype(np.float32) / 65535), "TIFF"),
    "large floats": _file(Image.fromarray(_RAMP.astype(np.float32) * 1e30), "TIFF"),
    "rgb png": _sixteen_bit_png(np.stack([_RAMP] * 3, axis=2), 2),
    "rgb png with alpha": _sixteen_bit_png(np.stack([_RAMP] * 3 + [_OPAQUE], axis=2), 6),
    "gray png with alpha": _sixteen_bit_png(np.stack([_RAMP, _OPAQUE], axis=2), 4),
}


@pytest.mark.parametrize("name", _DEEP)
def test_more_than_8_bits_look_like_their_8_bit_twin(name: str) -> None:
    found = _read(_DEEP[name])
    assert found.shape == (30, 40, 3)
    assert np.abs(found - _TWIN[:, :, None]).max() <= 1
    assert len(np.unique(found)) > 250


def test_memory_modes_that_no_file_needs_are_scaled_too() -> None:
    for mode, order in {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2"}.items():
        image = Image.frombytes(mode, (40, 30), _RAMP.astype(order).tobytes())
        assert np.abs(np.asarray(to_rgb(image)).astype(int)[:, :, 0] - _TWIN).max() <= 1


def test_values_that_are_not_finite_leave_the_others_their_levels() -> None:
    values = _RAMP.astype(np.float32)
    values[0, 0], values[1, 1], values[2, 2] = np.nan, np.inf, -np.inf
    found = _read(_file(Image.fromarray(values), "TIFF"))
    others = np.isfinite(values)
    assert np.abs(found[:, :, 0][others] - _TWIN[others]).max() <= 1
    assert found[~others].max() == 0


@pytest.mark.parametrize("value", [0.0, 0.5, 1e6, np.nan])
def test_a_float_image_of_one_value_is_mid_gray(value: float) -> None:
    found = _read(_file(Image.fromarray(np.full((4, 4), value, dtype=np.float32)), "TIFF"))
    assert np.unique(found).tolist() == [128]


def test_the_level_that_a_16_bit_png_names_transparent_is_white() -> None:
    found = _read(_file(Image.fromarray(_RAMP), "PNG", transparency=int(_RAMP[3, 5])))
    assert found[3, 5].tolist() == [255] * 3
    assert np.abs(found[4:, :, 0] - _TWIN[4:]).max() <= 1


_COLOURS = np.stack([_TWIN, _TWIN[::-1], np.full_like(_TWIN, 90)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "YCbCr", "CMYK", "HSV", "LAB", "RGBX", "RGBA", "RGBa"])
def test_colours_survive_every_colour_mode(mode: str) -> None:
    source = Image.fromarray(_COLOURS)
    image = source.convert("RGBA").convert(mode) if mode == "RGBa" else source.convert(mode)
    assert np.abs(np.asarray(to_rgb(image)).astype(int) - _COLOURS).mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "La", "PA"])
def test_gray_survives_every_gray_mode(mode: str) -> None:
    source = Image.fromarray(_TWIN.astype(np.uint8))
    image = source.convert("LA").convert("La") if mode == "La" else source.convert(mode)
    assert abs(np.asarray(to_rgb(image)).mean() - _TWIN.mean()) < 3


def _transparent(kind: str) -> bytes:
    """The right half of the image is transparent, whatever colour lies under it."""
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[:, :4] = (200, 40, 40, 255)
    if kind in ("RGBA", "LA", "La"):
        image = Image.fromarray(pixels).convert("LA" if kind == "La" else kind)
        return _file(image.convert(kind) if kind == "La" else image, "TIFF" if kind == "La" else "PNG")
    palette = Image.fromarray((pixels[:, :, 0] > 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 200, 40, 40])
    return _file(palette, "PNG", transparency=bytes([0, 255]) if kind == "P with bytes" else 0)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P with bytes", "P with an index"])
def test_transparency_shows_white(kind: str) -> None:
    found = _read(_transparent(kind))
    assert found[:, 4:].min() == 255
    assert found[:, :4].max() < 210


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    found = _read(_file(frames[0], kind, save_all=True, append_images=frames[1:] * 100, lossless=True))
    assert found.shape == (10, 20, 3)
    assert np.abs(found - [254, 0, 0]).max() < 3


def test_an_image_on_its_side_is_turned_upright_whatever_its_mode() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for data in (_file(Image.fromarray(_RAMP), "PNG", exif=exif), _file(Image.fromarray(_RAMP), "TIFF", exif=exif)):
        assert np.abs(_read(data)[:, :, 0] - np.rot90(_TWIN, -1)).max() <= 1


def _turned(width: int, height: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _file(Image.new("RGB", (width, height)), "JPEG", exif=exif)


_THIN = {
    "png": _png(60_000, 1, bits=1),
    "png upright": _png(1, 60_000, bits=1),
    "png that claims more than it holds": _png(2**31 - 1, 1),
    "jpeg": _file(Image.new("L", (60_000, 2)), "JPEG"),
    "jpeg on its side": _turned(30_000, 3),
    "webp": _file(Image.new("RGB", (16_000, 1)), "WEBP"),
    "gif": _file(Image.new("P", (60_000, 3)), "GIF"),
    "tiff": _file(Image.new("1", (2, 50_000)), "TIFF"),
    "just over the bound": _file(Image.new("L", (1001, 10)), "PNG"),
}


@pytest.mark.parametrize("name", _THIN)
def test_a_long_thin_image_is_refused_by_its_header(name: str) -> None:
    refusal = pytest.raises(BadImageError, match=r"too long and thin|too many pixels")
    with memory_below(20_000_000), refusal, decoded(io.BytesIO(_THIN[name])):
        pass


def test_a_long_image_within_the_bound_is_read() -> None:
    assert _read(_file(Image.new("L", (1000, 10)), "PNG")).shape == (10, 1000, 3)


def _with_text(kind: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 5_000_000, zip=kind == "compressed text")
    return _file(Image.new("L", (8, 8)), "PNG", pnginfo=info)


_WHOLE = _file(Image.fromarray(_COLOURS), "PNG")
_DAMAGED = {
    "nothing": b"",
    "text": b"not a picture",
    "truncated": _WHOLE[: len(_WHOLE) // 2],
    "truncated jpeg": _file(Image.fromarray(_COLOURS), "JPEG")[:400],
    "truncated tiff": _DEEP["tiff"][:60],
    "no pixels": _png(0, 5),
    "broken chunk": _WHOLE[:30] + bytes(20) + _WHOLE[50:],
    "too many pixels": _png(40_000, 40_000),
    "too many pixels for PIL": _png(100_000, 100_000),
    "rows that do not fit": _png(8, 8, rows=b"\x09" * 3),
    "a zip bomb for a comment": _with_text("compressed text"),
    "a zip bomb for a profile": _file(Image.new("L", (8, 8)), "PNG", icc_profile=bytes(50_000_000)),
}


@pytest.mark.parametrize("name", _DAMAGED)
def test_whatever_is_wrong_becomes_one_line(name: str) -> None:
    refusal = pytest.raises(BadImageError)
    with memory_below(20_000_000), refusal as refused, decoded(io.BytesIO(_DAMAGED[name])) as image:
        to_rgb(image)
    assert str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("error", [MemoryError(), OverflowError("a\nb"), struct.error("short"), SyntaxError("broken")])
def test_whatever_the_transform_raises_becomes_one_line(error: Exception) -> None:
    with pytest.raises(BadImageError, match=r"cannot be decoded: \S") as refused, decoded(io.BytesIO(_WHOLE)):
        raise error
    assert "\n" not in str(refused.value)


def test_a_file_that_is_absent_or_a_folder_is_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(BadImageError, match="image file is missing"), decoded(path):
            pass
