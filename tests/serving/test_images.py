"""Decoding the images of requests."""

import pytest

from ptmrec_dist.errors import UserError
from ptmrec_dist.serving.images import read_image


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_bytes_that_are_no_picture_get_one_line(data):
    with pytest.raises(UserError, match="cannot be decoded"):
        read_image(data)
