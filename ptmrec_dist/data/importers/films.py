"""MovieLens (GroupLens, https://grouplens.org/datasets/movielens/): 100K, 1M, 10M and the data sets in CSV.

Harper and Konstan, The MovieLens Datasets: History and Context, 2015. Posters are not part of them: those in
`posters/ID.jpg` or `images/ID.jpg` are found.
"""

from collections import defaultdict
from pathlib import Path

from ptmrec_dist.data.importers.base import Importer, Interaction, Item, flat
from ptmrec_dist.data.importers.rows import Row, TextFormat, Unreadable, read_rows

_GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_FILM_100K = ("movieId", "title", "released", "video", "imdb", *_GENRES)
_FORMATS = {
    "u.data": TextFormat("\t", ("userId", "movieId", "rating", "timestamp")),
    "u.item": TextFormat("|", _FILM_100K),
    "ratings.dat": TextFormat("::", ("userId", "movieId", "rating", "timestamp")),
    "movies.dat": TextFormat("::", ("movieId", "title", "genres")),
    "tags.dat": TextFormat("::", ("userId", "movieId", "tag", "timestamp")),
}


class MovieLens(Importer):
    """Films with their genres and tags, and ratings."""

    catalogue = ("movies.csv", "movies.dat", "u.item")
    log = ("ratings.csv", "ratings.dat", "u.data")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.tags: dict[str, dict[str, None]] = defaultdict(dict)
        for path in self.find(("tags.csv", "tags.dat"), required=False):
            for row in read_rows(path, self.text_format(path)):
                if not isinstance(row, Unreadable):
                    self.tags[row.get("movieId", "")][row.get("tag", "")] = None

    def text_format(self, path: Path) -> TextFormat:
        """Return how the lines are divided, which each release does in its own way."""
        return _FORMATS.get(path.name, TextFormat())

    def item(self, row: Row) -> Item | Unreadable:
        """Read a film."""
        if not row.get("movieId"):
            return Unreadable("no movieId", str(row)[:60])
        item_id, title = row["movieId"], flat(row.get("title"))
        written = row.get("genres", "").split("|")
        genres = [genre for genre in written if genre and genre != "(no genres listed)"]
        genres += [genre for genre in _GENRES if row.get(genre) == "1"]
        image = self.existing(*(f"{folder}/{item_id}.jpg" for folder in ("posters", "images")))
        return Item(
            item_id, title, flat(title, genres, list(self.tags.get(item_id, ()))), image, category=flat(genres[:1])
        )

    def interaction(self, row: Row) -> Interaction | Unreadable:
        """Read a rating."""
        user, item = row.get("userId", ""), row.get("movieId", "")
        if not user or not item:
            return Unreadable("no userId or no movieId", str(row)[:60])
        return Interaction(user, item, row.get("rating", ""), row.get("timestamp", ""))
