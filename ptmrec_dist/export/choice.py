"""The choice of a format by its name: its library is imported only then."""

from ptmrec_dist.errors import UserError
from ptmrec_dist.export.formats import Format


def format_named(name: str) -> Format:
    """Find a format; its library is imported only here.

    Args:
        name: `open_clip`, `huggingface`, `timm` or `onnx`.

    Returns:
        The format.

    Raises:
        UserError: A library of the extra `export` is not installed.
    """
    if name == "onnx":
        try:
            from ptmrec_dist.export.onnx import Onnx
        except ImportError as error:
            raise UserError(
                f"format: onnx cannot be written ({error}); pip install 'ptmrec-dist[export]', or choose another"
            ) from error
        return Onnx()
    from ptmrec_dist.export import folders

    kinds: dict[str, type[Format]] = {
        "open_clip": folders.OpenClipFolder,
        "huggingface": folders.TextFolder,
        "timm": folders.TimmFolder,
    }
    return kinds[name]()
