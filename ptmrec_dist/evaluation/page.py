"""The one builder of pages: a single HTML file of headings, texts, figures, tables and pictures that needs no network.

What a page says is put together elsewhere (`comparison`, `report`); how it looks is in `templates/`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ptmrec_dist.evaluation.figures import Figure
from ptmrec_dist.evaluation.tables import Table
from ptmrec_dist.files import write_atomically

_TEMPLATES = Path(__file__).with_name("templates")
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Item:
    """An item with its picture."""

    title: str
    """Its title, which is also the picture's alternative text."""
    picture: str
    """Data URI; empty where the item has no picture."""
    new: bool = False
    """Whether it is cold."""
    hit: bool = False
    """Whether to tick it."""


@dataclass(frozen=True)
class ItemRow:
    """Items under a heading."""

    heading: str
    """What the items are."""
    items: Sequence[Item]
    """Items in order."""


@dataclass(frozen=True)
class UserRows:
    """A user and the rows of items shown for them."""

    user_id: str
    """The user."""
    rows: Sequence[ItemRow]
    """Rows, top to bottom."""


@dataclass(frozen=True)
class Change:
    """A value before and after, shown large."""

    label: str
    """What is measured, and on what."""
    before: float
    """Value before."""
    after: float
    """Value after."""
    note: str
    """From what to what."""


@dataclass(frozen=True)
class Section:
    """A part of a page, shown in the order of its fields."""

    heading: str
    """Its heading."""
    text: Sequence[str] = ()
    """Paragraphs."""
    changes: Sequence[Change] = ()
    """Values before and after."""
    figures: Sequence[Figure] = ()
    """Figures; how to read them is said once for all that share it."""
    tables: Sequence[Table] = ()
    """Tables."""
    folded: Sequence[Table] = ()
    """Further tables, to be unfolded by their captions."""
    users: Sequence[UserRows] = ()
    """What users are recommended."""
    listing: str = ""
    """Commands."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Name to fact."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Heading to text that can be unfolded, such as settings."""
    sections: Sequence["Section"] = ()
    """Sections within."""


@dataclass(frozen=True)
class Page:
    """What a page shows."""

    title: str
    """Heading."""
    summary: Sequence[str]
    """Paragraphs below it."""
    sections: Sequence[Section]
    """Sections, top to bottom."""
    pictures: Sequence[Item] = ()
    """Items shown on top, for a look at the catalogue."""


def write_page(path: Path, page: Page) -> None:
    """Write a page.

    Args:
        path: The HTML file; it is replaced only by a whole one.
        page: What it shows. Whatever is in it is escaped, apart from figures.
    """
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"gain": gain, "kind": kind_of_change}
    write_atomically(path, templates.get_template("page.html").render(page=page))


def gain(after: float, before: float) -> str:
    """Write a relative change with its direction, so that it can be read without colours.

    Args:
        after: Value after.
        before: Value before.

    Returns:
        Such as `▲ +4.1%`, `▼ −2.0%`, `0.0%` for one that rounds to nothing; empty where there was nothing before.
    """
    if not before:
        return ""
    percent = round(100 * (after / before - 1), 1)
    if not percent:
        return "0.0%"
    return f"{'▲' if percent > 0 else '▼'} {percent:+.1f}%".replace("-", _MINUS)


def kind_of_change(text: str) -> str:
    """Say which of the page's classes an entry belongs to, from the sign that `gain` writes.

    Args:
        text: Text of an entry.

    Returns:
        `gain`, `loss`, or nothing.
    """
    return {"▲": "gain", "▼": "loss"}.get(text[:1], "")
