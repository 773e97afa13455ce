"""Tables for papers and pages: one table, written as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ptmrec_dist.files import write_atomically

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "_": r"\_",
        "%": r"\%",
        "&": r"\&",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        "±": r"$\pm$",
        "†": r"\dag{}",
    }
)


@dataclass(frozen=True)
class Entry:
    """A value as a table shows it."""

    text: str
    """What stands there."""
    best: bool = False
    """Whether it is the best of its column."""
    marks: str = ""
    """Signs behind it, which the caption explains, such as `*` for a significant difference."""


@dataclass(frozen=True)
class Table:
    """Rows of entries under a heading."""

    caption: str
    """What the table shows, and what bold and marks mean."""
    heading: Sequence[str]
    """Name of each column."""
    rows: list[list[Entry]] = field(default_factory=list)
    """Entries, a row each."""
    keys: int = 1
    """How many columns, from the left, name the row."""

    def markdown(self) -> str:
        """Write it as Markdown: best in bold, marks behind."""
        lines = [self.heading, ["---"] * len(self.heading)]
        lines += [[_marked(entry, entry.text, "**{}**", "{}{}", entry.marks) for entry in row] for row in self.rows]
        return f"{self.caption}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def latex(self) -> str:
        """Write it as a LaTeX table, for the package booktabs."""
        body = [
            [_marked(entry, _tex(entry.text), r"\textbf{{{}}}", "{}$^{{{}}}$", _tex(entry.marks)) for entry in row]
            for row in self.rows
        ]
        lines = [
            r"\begin{table}",
            rf"\caption{{{_tex(self.caption)}}}",
            rf"\begin{{tabular}}{{{'l' * len(self.heading)}}}",
            r"\toprule",
            " & ".join(map(_tex, self.heading)) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in body),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Write it as CSV, without marks."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.heading)
        writer.writerows([entry.text for entry in row] for row in self.rows)
        return buffer.getvalue()

    def write(self, folder: Path, name: str) -> None:
        """Write all three next to each other.

        Args:
            folder: Where.
            name: Name of the files, without their endings.
        """
        for ending, text in (("md", self.markdown()), ("tex", self.latex()), ("csv", self.csv())):
            write_atomically(folder / f"{name}.{ending}", text)


def mean_of_seeds(values: Sequence[float] | np.ndarray, digits: int = 4) -> str:
    """Write a mean over seeds, and where there are several their standard deviation.

    Args:
        values: A value a seed.
        digits: How many after the point.

    Returns:
        Such as `0.1234` or `0.1234 ± 0.0056`.
    """
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _marked(entry: Entry, text: str, bold: str, marked: str, marks: str) -> str:
    text = bold.format(text) if entry.best else text
    return marked.format(text, marks) if marks else text


def _tex(text: str) -> str:
    return text.translate(_LATEX)
