"""Data sets that are tables already: RecBole's atomic files, folders of MMRec, and Hugging Face `datasets` saved to disk."""

from pathlib import Path
from typing import Any

from ptmrec_dist.data.importers.base import Importer, Interaction, Item, flat
from ptmrec_dist.data.importers.rows import Row, TextFormat, Unreadable

_SEQUENCE = ":token_seq"
_LABELS = ("title", "name", "movie_title", "item_name")


class RecBole(Importer):
    """Atomic files `NAME.item` and `NAME.inter` (https://recbole.io/docs/user_guide/data/atomic_files.html).

    The text of an item is all its columns of the type `token_seq`, and its title.
    """

    catalogue = ("*.item",)
    log = ("*.inter",)

    def item(self, row: Row) -> Item | Unreadable:
        """Read an item."""
        plain = {name.split(":")[0]: value for name, value in row.items()}
        item_id = plain.get("item_id", "")
        if not item_id:
            return Unreadable("no item_id", str(row)[:60])
        title = next((flat(plain[name]) for name in _LABELS if plain.get(name)), "")
        texts = [value for name, value in row.items() if name.endswith(_SEQUENCE) and name.split(":")[0] not in _LABELS]
        image = self.existing(*(f"images/{item_id}.{ending}" for ending in ("jpg", "png")))
        return Item(item_id, title, flat(title, texts), image)

    def interaction(self, row: Row) -> Interaction | Unreadable:
        """Read an interaction."""
        plain = {name.split(":")[0]: value for name, value in row.items()}
        user, item = plain.get("user_id", ""), plain.get("item_id", "")
        if not user or not item:
            return Unreadable("no user_id or no item_id", str(row)[:60])
        return Interaction(user, item, plain.get("rating", ""), plain.get("timestamp", ""))


class MMRec(Importer):
    """A folder `NAME/` of MMRec (https://github.com/enoche/MMRec): `NAME.inter` with its own split, and arrays of features.

    It has no catalogue; the arrays are read as they are by `ptmrec features`.
    """

    catalogue = ()
    log = ("*.inter",)

    def arrays(self) -> dict[str, Path]:
        """Return those of `image_feat.npy` and `text_feat.npy` that are there."""
        files = {name: self.folder / f"{name}_feat.npy" for name in ("image", "text")}
        return {name: path for name, path in files.items() if path.is_file()}

    def item(self, row: Row) -> Item | Unreadable:
        """Refuse: there is no catalogue."""
        return Unreadable("not an item", str(row)[:60])

    def interaction(self, row: Row) -> Interaction | Unreadable:
        """Read an interaction."""
        user, item = row.get("userID", ""), row.get("itemID", "")
        if not user or not item:
            return Unreadable("no userID or no itemID", str(row)[:60])
        return Interaction(user, item, row.get("rating", ""), row.get("timestamp", ""), row.get("x_label", ""))


class HuggingFace(Importer):
    """Two data sets of Hugging Face `datasets`, saved by `save_to_disk` to `items/` and `interactions/`.

    Columns have the names that `ptmrec pack` expects: `item_id`, `title`, `text`, `image` (a `datasets.Image`); `user_id`,
    `item_id`, `rating`, `timestamp`.
    """

    catalogue = ("items/*.arrow", "items/*/*.arrow", "items/*.parquet")
    log = ("interactions/*.arrow", "interactions/*/*.arrow", "interactions/*.parquet")

    def text_format(self, path: Path) -> TextFormat:
        """Return a format that is not used: none of the files is text."""
        return TextFormat()

    def item(self, row: Row) -> Item | Unreadable:
        """Read an item."""
        item_id, title = flat(row.get("item_id")), flat(row.get("title"))
        if not item_id:
            return Unreadable("no item_id", _shown(row))
        image: Any = row.get("image")
        inside = image.get("bytes") if isinstance(image, dict) else None
        path = image.get("path") if isinstance(image, dict) else image
        stored = "" if inside else self.existing(path or "")
        return Item(item_id, title, flat(row.get("text")) or title, stored, image_bytes=inside)

    def interaction(self, row: Row) -> Interaction | Unreadable:
        """Read an interaction."""
        user, item = flat(row.get("user_id")), flat(row.get("item_id"))
        if not user or not item:
            return Unreadable("no user_id or no item_id", _shown(row))
        return Interaction(user, item, flat(row.get("rating")), flat(row.get("timestamp")))


def _shown(row: Row) -> str:
    return str({name: value for name, value in row.items() if not isinstance(value, dict | bytes)})[:60]
