"""What a served model reports to an observer, such as a monitoring system."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ptmrec_dist.serving.params import Params
from ptmrec_dist.serving.users import Requesters


class Observer(Protocol):
    """Watches answers; it must be fast, and must not raise."""

    def answered(self, requesters: Requesters, params: Params, answer: Mapping[str, Sequence[Any]]) -> None:
        """Take note of an answer.

        Args:
            requesters: Users and visitors of the request.
            params: Its parameters.
            answer: Columns as `ServedModel.answer` returns them.
        """

    def read_image(self, width: int, height: int) -> None:
        """Take note of the image of a new item.

        Args:
            width: Its width in pixels.
            height: Its height in pixels.
        """
