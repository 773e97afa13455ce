"""Libraries that are needed by some settings alone, and need not be installed."""

from typing import Any

from ptmrec_dist.errors import UserError


def import_faiss(setting: str) -> Any:
    """Import FAISS.

    Args:
        setting: The setting that needs it, for messages.

    Returns:
        The module.

    Raises:
        UserError: It is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            f"{setting}: FAISS cannot be imported ({error}); install it with `pip install faiss-cpu`"
        ) from error
    return faiss
