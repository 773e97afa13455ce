"""Hooks of mkdocs: convert `.. math::` blocks of docstrings to MathML, which browsers render without a script."""

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

_BLOCK = re.compile(r"^( *)\.\. math::\n((?:\1    .*\n|\s*\n)+)", re.MULTILINE)


class _Math(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        """Replace every block; a blank line in it starts another equation."""
        return _BLOCK.sub(_equations, "\n".join(lines) + "\n").splitlines()


class _MathExtension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        """Register the preprocessor, to run before all others."""
        md.preprocessors.register(_Math(md), "rst_math", 100)


def on_config(config: Any) -> Any:
    """Add the extension to pages and docstrings alike.

    Args:
        config: Configuration of mkdocs.

    Returns:
        The configuration.
    """
    config.markdown_extensions.append(_MathExtension())
    return config


def _equations(block: re.Match[str]) -> str:
    equations = re.split(r"\n\s*\n|\\qquad", block.group(2).strip())
    rendered = [convert(" ".join(equation.split()), display="block") for equation in equations]
    return "\n\n" + "\n\n".join(f'<div class="arithmatex">{equation}</div>' for equation in rendered) + "\n\n"
