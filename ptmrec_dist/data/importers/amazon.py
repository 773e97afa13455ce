"""Amazon Reviews of 2014, 2018 and 2023 (McAuley Lab): files of reviews, and of metadata.

2014: https://jmcauley.ucsd.edu/data/amazon/, metadata in Python literals. 2018: https://nijianmo.github.io/amazon/.
2023: https://amazon-reviews-2023.github.io/, where an item is a `parent_asin`. Images are addresses: those already
downloaded to `images/ASIN.jpg` are found.
"""

from collections.abc import Iterator
from html import unescape
from typing import Any

from ptmrec_dist.data.importers.base import Importer, Interaction, Item, flat
from ptmrec_dist.data.importers.rows import Row, Unreadable

_IMAGES = ("imUrl", "imageURLHighRes", "imageURL", "images")


class Amazon(Importer):
    """Reviews and metadata of one category."""

    catalogue = ("meta_*.json*", "meta*.json*", "meta_*.parquet")
    log = ("reviews_*.json*", "[!m]*.json*", "M*.json*", "[!m]*.csv*", "[!m]*.parquet")

    def item(self, row: Row) -> Item | Unreadable:
        """Read a product."""
        item_id = flat(row.get("parent_asin") or row.get("asin"))
        if not item_id:
            return Unreadable("no asin", str(row)[:60])
        title = _words(row.get("title"))
        categories = row.get("category") or row.get("categories")
        details = (row.get("brand") or row.get("store"), categories, row.get("feature") or row.get("features"))
        return Item(
            item_id,
            title,
            flat(title, _words(*details, row.get("description"))),
            self.existing(f"images/{item_id}.jpg"),
            next(_addresses([row.get(name) for name in _IMAGES]), ""),
            _words(row.get("main_category") or row.get("main_cat")) or _last(categories),
        )

    def interaction(self, row: Row) -> Interaction | Unreadable:
        """Read a review."""
        user, item = row.get("reviewerID") or row.get("user_id"), row.get("parent_asin") or row.get("asin")
        if not user or not item:
            return Unreadable("no user or no asin", str(row)[:60])
        rating, time = row.get("overall", row.get("rating")), row.get("unixReviewTime", row.get("timestamp"))
        return Interaction(flat(user), flat(item), flat(rating), flat(time))


def _words(*values: Any) -> str:
    """The texts of a product, which were taken from pages in HTML: `&amp;` is read as `&`."""
    return flat(unescape(flat(*values)))


def _addresses(value: Any) -> Iterator[str]:
    """Addresses of images, best first, in a text, a list of them, and those of several sizes, as a dict or a list of dicts."""
    if isinstance(value, dict):
        value = [value.get(size) for size in ("hi_res", "large", "thumb")]
    if isinstance(value, list):
        for element in value:
            yield from _addresses(element)
    elif isinstance(value, str) and value:
        yield value


def _last(categories: Any) -> str:
    while isinstance(categories, list) and categories:
        categories = categories[-1]
    return _words(categories) if isinstance(categories, str) else ""
