"""H&M Personalized Fashion Recommendations (Kaggle, 2022) and the Yelp Open Dataset (https://business.yelp.com/data/)."""

from pathlib import Path

from ptmrec_dist.data.importers.base import Importer, Interaction, Item, flat
from ptmrec_dist.data.importers.rows import Row, TextFormat, Unreadable, read_rows


class HM(Importer):
    """Articles, `images/010/0108775015.jpg`, and transactions."""

    catalogue = ("articles.csv*",)
    log = ("transactions_train.csv*", "transactions*.csv*")

    def item(self, row: Row) -> Item | Unreadable:
        """Read an article."""
        item_id = row.get("article_id", "")
        if not item_id:
            return Unreadable("no article_id", str(row)[:60])
        title = flat(row.get("prod_name"))
        kind = flat(row.get("product_type_name"))
        text = flat(title, kind, row.get("colour_group_name"), row.get("department_name"), row.get("detail_desc"))
        return Item(item_id, title, text, self.existing(f"images/{item_id[:3]}/{item_id}.jpg"), category=kind)

    def interaction(self, row: Row) -> Interaction | Unreadable:
        """Read a transaction."""
        user, item = row.get("customer_id", ""), row.get("article_id", "")
        if not user or not item:
            return Unreadable("no customer_id or no article_id", str(row)[:60])
        return Interaction(user, item, timestamp=row.get("t_dat", ""))


class Yelp(Importer):
    """Businesses with the first of their photos (`photos/ID.jpg`), and reviews."""

    catalogue = ("*business.json*",)
    log = ("*review.json*",)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.photos: dict[str, str] = {}
        for path in self.find(("photos.json*", "*/photos.json*"), required=False):
            beside = path.parent.relative_to(folder)
            for row in read_rows(path, TextFormat()):
                if not isinstance(row, Unreadable) and row.get("business_id") not in self.photos:
                    photo = self.existing(str(beside / "photos" / f"{row.get('photo_id')}.jpg"))
                    if photo:
                        self.photos[row["business_id"]] = photo

    def item(self, row: Row) -> Item | Unreadable:
        """Read a business."""
        item_id = flat(row.get("business_id"))
        if not item_id:
            return Unreadable("no business_id", str(row)[:60])
        title, categories = flat(row.get("name")), flat(row.get("categories"))
        text = flat(title, categories, row.get("city"))
        return Item(item_id, title, text, self.photos.get(item_id, ""), category=categories.split(",")[0])

    def interaction(self, row: Row) -> Interaction | Unreadable:
        """Read a review."""
        user, item = flat(row.get("user_id")), flat(row.get("business_id"))
        if not user or not item:
            return Unreadable("no user_id or no business_id", str(row)[:60])
        return Interaction(user, item, flat(row.get("stars")), flat(row.get("date")))
