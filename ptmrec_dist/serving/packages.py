"""Versions of the packages that a model's output depends on: at registration, and where it is served."""

import logging
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

log = logging.getLogger(__name__)

_RECORDED = (
    "ptmrec-dist",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "tokenizers",
    "peft",
    "pillow",
    "numpy",
    "faiss-cpu",
)


def installed_packages() -> dict[str, str]:
    """Look the versions up.

    Returns:
        Package to version, of those that are installed.
    """
    found = {name: _installed(name) for name in _RECORDED}
    return {name: number for name, number in found.items() if number is not None}


def compare_packages(recorded: Mapping[str, str]) -> None:
    """Warn, once per process, if a model was registered with other versions than are installed.

    Args:
        recorded: Package to version, as `installed_packages` returned them at registration.
    """
    others = [
        f"{name} {number} (installed: {_installed(name) or 'none'})"
        for name, number in recorded.items()
        if _release(number) != _release(_installed(name))
    ]
    if others:
        _warn(", ".join(others))


@cache
def _warn(others: str) -> None:
    log.warning(
        "model: it was registered with %s; its answers may differ here. Install these versions, or register it again",
        others,
    )


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _release(number: str | None) -> str | None:
    """`2.11.0+cu128` and `2.11.0+cpu` are builds of one release."""
    return None if number is None else number.partition("+")[0]
