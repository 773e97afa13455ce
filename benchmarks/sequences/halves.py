"""Two catalogues of one: the items that have a genre, and the others, each with its own interactions.

python benchmarks/sequences/halves.py --items items.csv --interactions interactions.csv --genre Drama --out halves
"""

import argparse
from pathlib import Path

import polars as pl


def divide(items: Path, interactions: Path, column: str, genre: str, out: Path) -> None:
    """Write `with/` and `without/`, each with items.csv and interactions.csv; the rows of both add up to those that were read.

    Args:
        items: Catalogue with `item_id` and a column of genres, separated by `|`.
        interactions: Table with `item_id`.
        column: Name of the column of genres.
        genre: The genre.
        out: Folder to write to.
    """
    catalogue, rows = (pl.read_csv(path, infer_schema=False) for path in (items, interactions))
    has = pl.col(column).str.split("|").list.contains(genre)
    for name, chosen in (("with", has), ("without", ~has)):
        half = catalogue.filter(chosen.fill_null(value=name == "without"))
        taken = rows.filter(pl.col("item_id").is_in(half["item_id"].implode()))
        (out / name).mkdir(parents=True, exist_ok=True)
        half.write_csv(out / name / "items.csv")
        taken.write_csv(out / name / "interactions.csv")
        print(f"{out / name}: {half.height:,} items, {taken.height:,} interactions")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=Path, required=True)
    parser.add_argument("--interactions", type=Path, required=True)
    parser.add_argument("--column", default="genres")
    parser.add_argument("--genre", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    divide(given.items, given.interactions, given.column, given.genre, given.out)
