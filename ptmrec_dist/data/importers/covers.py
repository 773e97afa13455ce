"""Data sets of videos with covers: MicroLens and PixelRec.

https://github.com/westlake-repl/MicroLens (Ni et al. 2023), https://github.com/westlake-repl/PixelRec (Cheng et al. 2023).
"""

from pathlib import Path

from ptmrec_dist.data.importers.base import Importer, Interaction, Item, flat
from ptmrec_dist.data.importers.rows import Row, TextFormat, Unreadable


class MicroLens(Importer):
    """Titles, covers (`*covers/ID.jpg`), and pairs of users and items."""

    catalogue = ("*title_en.csv", "*titles.csv", "*title*.csv")
    log = ("*pairs.csv", "*pairs.tsv")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.covers = [path.name for path in sorted(folder.glob("*covers*")) if path.is_dir()]

    def text_format(self, path: Path) -> TextFormat:
        """Return how the lines are divided: titles have no header in some of the releases."""
        if path in self.log_files or _has_header(path):
            return super().text_format(path)
        return TextFormat(",", ("item", "title"))

    def item(self, row: Row) -> Item | Unreadable:
        """Read a video."""
        item_id, title = row.get("item", ""), flat(row.get("title"))
        if not item_id:
            return Unreadable("no item", str(row)[:60])
        return Item(item_id, title, title, self.existing(*(f"{folder}/{item_id}.jpg" for folder in self.covers)))

    def interaction(self, row: Row) -> Interaction | Unreadable:
        """Read a pair."""
        user, item = row.get("user", ""), row.get("item", "")
        if not user or not item:
            return Unreadable("no user or no item", str(row)[:60])
        return Interaction(user, item, timestamp=row.get("timestamp", ""))


class PixelRec(Importer):
    """Titles, tags and descriptions, covers (`*/ID.jpg`), and interactions."""

    catalogue = ("item_info*.csv", "item_info/*.csv", "*info*.csv")
    log = ("Pixel*.csv", "interactions/*.csv")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.covers = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]

    def item(self, row: Row) -> Item | Unreadable:
        """Read a video."""
        item_id, title = row.get("item_id", ""), flat(row.get("title"))
        if not item_id:
            return Unreadable("no item_id", str(row)[:60])
        image = self.existing(*(f"{folder}/{item_id}.jpg" for folder in self.covers))
        tag = flat(row.get("tag"))
        return Item(item_id, title, flat(title, tag, row.get("description")), image, category=tag)

    def interaction(self, row: Row) -> Interaction | Unreadable:
        """Read an interaction."""
        user, item = row.get("user_id", ""), row.get("item_id", "")
        if not user or not item:
            return Unreadable("no user_id or no item_id", str(row)[:60])
        return Interaction(user, item, timestamp=row.get("timestamp", ""))


def _has_header(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return not file.readline().split(",")[0].strip().isdigit()
