"""Settings of the commands that prepare data: packing and features."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ptmrec_dist.config.common import (
    EncoderConfig,
    require,
    require_device,
    require_processes,
    require_seeds,
    require_timeout,
)
from ptmrec_dist.config.pattern import Pattern, is_pattern

MAX_ASPECT_RATIO = 100
"""Largest ratio of an image's longer side to the shorter, wherever images are decoded."""


@dataclass(frozen=True, kw_only=True)
class CatalogueColumnsConfig:
    """Names of a catalogue's columns; in a table without a header their numbers, from 1."""

    item: str = "item_id"
    """Item id, in both tables (`itemID` in `.inter` files)."""
    items_id: str | None = None
    """Item id in the catalogue, if its column has another name there than in the interactions."""
    text: tuple[str, ...] = ("text",)
    """Text columns of the catalogue, joined by a space in this order: `title,description` are two."""
    title: str = "title"
    """Short name shown with recommendations; by default the start of the text."""
    image: str = "image"
    """Image path, relative to `--images`; or a pattern of columns with Python's format specifications for text:
    `'{item_id:.3}/{item_id}.jpg'`."""

    def __post_init__(self) -> None:
        require(len(self.text) > 0, "columns.text", list(self.text), "one column or more")
        if is_pattern(self.image):
            Pattern.parse(self.image, "columns.image")

    def names(self, column: str) -> bool:
        """Return whether a column was named, so that the table must have it.

        Args:
            column: Name of the field.

        Returns:
            Whether its value is not the default.
        """
        return bool(getattr(self, column) != getattr(type(self), column))


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig(CatalogueColumnsConfig):
    """Names of the columns in the tables that `ptmrec pack` reads; in a table without a header their numbers, from 1."""

    attributes: tuple[str, ...] = ()
    """Further columns of the catalogue to keep, by which a registered model's requests may filter: `genres,year`."""
    user: str = "user_id"
    """User id (`userID` in `.inter` files)."""
    rating: str = "rating"
    """Rating; needed only with `--min_rating`."""
    time: str = "timestamp"
    """Time of the interaction: a date (`2017-07-14`, `2017-07-14T03:59:00+02:00`, `July 14, 2017 3:59 PM`; `14.07.2017`
    or `07/14/2017` where a day above 12 tells the order of the column) or a number (seconds, milliseconds, ... since 1970, by
    its size); needed by the splits `leave_one_out` and `temporal` and by sequence recommenders."""


@dataclass(frozen=True, kw_only=True)
class ReadsTables:
    """A catalogue and its interactions: where they are, how to read them, and what is kept of them."""

    items: Path | None = None
    """Catalogue, in any format of `interactions` (of RecBole's, `.item`). Without it only interactions are packed, for ID-only
    recommenders."""
    images: Path | None = None
    """Folder that the catalogue's image paths are relative to; by default the catalogue's own folder."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Column names."""
    separator: str | None = None
    """Column separator of text tables, one or more characters: `';'`, `'|'`, `::`, `tab`; by default implied by the file
    name. With it, files of any other name are read as text."""
    header: bool = True
    """Whether the first row of text tables names the columns. Without one (`--header false`) columns are named by their
    number: `--columns.user 1 --columns.item 2 --columns.time 4`."""
    items_separator: str | None = None
    """`separator` of the catalogue, if it differs from that of the interactions."""
    items_header: bool | None = None
    """`header` of the catalogue, if it differs from that of the interactions."""
    split: Literal["random", "leave_one_out", "temporal", "given", "cold_items"] = "random"
    """random: 8:1:1 per user; leave_one_out: the last two per user by time (at equal times, the item
    that comes later in the catalogue is the later); temporal: the latest tenth of all interactions for test and the tenth
    before for validation, divided at the same two times for all users; given: as in the column `x_label` (0 training,
    1 validation, 2 test); cold_items: 5 % and 15 % of the items held out with all their interactions for validation and test,
    the rest as random."""
    core: int = 5
    """Keep only users and items with at least this many interactions (repeated until stable); 0 keeps all."""
    min_rating: float | None = None
    """Keep only interactions rated at least this; `true` and `false` are 1 and 0."""
    missing: Literal["drop", "keep"] = "drop"
    """What to do with items that lack one of image and text in a catalogue that has both: leave them out with their
    interactions, or keep them. The missing features of kept items are the mean of the other items'."""
    image_size: int = 224
    """Shorter side in pixels to which larger images are reduced, once; smaller images are kept as they are."""
    max_image_pixels: int = 100_000_000
    """Images with more pixels than this are refused before they are decoded."""
    max_aspect_ratio: float = 50.0
    """Images of which one side is longer than this many times the other are refused before they are decoded: an encoder
    scales the shorter side to its own size. At most 100, which is what features, training and serving accept."""

    def __post_init__(self) -> None:
        require(self.core >= 0, "core", self.core, "0 or more")
        require(self.image_size >= 16, "image_size", self.image_size, "16 pixels or more")
        require(self.max_image_pixels >= 1, "max_image_pixels", self.max_image_pixels, "1 or more")
        allowed = 1 <= self.max_aspect_ratio <= MAX_ASPECT_RATIO
        require(allowed, "max_aspect_ratio", self.max_aspect_ratio, f"1 to {MAX_ASPECT_RATIO}")
        for name in ("separator", "items_separator"):
            require(getattr(self, name) != "", name, "", "one character or more")

    @property
    def splits_in_time(self) -> bool:
        """Whether the split needs the time of every interaction."""
        return self.split in ("leave_one_out", "temporal")


@dataclass(frozen=True, kw_only=True)
class PackConfig(ReadsTables):
    """Validate a catalogue and its interactions, split them, and write WebDataset shards."""

    interactions: Path
    """Interactions: `.csv`, `.tsv`, RecBole's `.inter`, JSON lines (`.jsonl`, `.ndjson`, `.json`), each also compressed (`.gz`,
    `.bz2`, `.xz`, `.zst`, `.zip`), `.parquet`, or a folder of Parquet files."""
    out: Path
    """Folder of the packed data set; must be new or contain a packed data set to replace."""
    repeats: Literal["drop", "keep"] = "drop"
    """Repeated pairs of user and item: drop all but the earliest, or keep them, for sequences in which users take items again;
    the parts then have pairs in common."""
    seed: int = 0
    """Seed of the split and of the order of items in the shards."""
    shard_bytes: int = 256_000_000
    """Upper bound of a shard's size in bytes."""
    num_shards: int | None = None
    """Number of shards; by default 32 (fewer for tiny catalogues), more where `shard_bytes` requires it."""
    workers: int | None = None
    """Processes of each rank that decode and write; by default one for each processor that may be used,
    divided among a machine's ranks."""
    timeout: float = 3600.0
    """Seconds that ranks wait for each other, also while the first one reads the tables, before they stop."""
    on_error: Literal["skip", "fail"] = "skip"
    """What to do with bad rows and images: leave them out and count them, or stop before anything is written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seeds("seed", self.seed)
        require(self.num_shards is None or self.num_shards >= 1, "num_shards", self.num_shards, "1 or more")
        require_processes("workers", self.workers)
        require_timeout(self.timeout)
        require(self.shard_bytes >= 1_000_000, "shard_bytes", self.shard_bytes, "1000000 or more")
        require(self.images is None or self.items is not None, "images", str(self.images), "a catalogue: add --items")

    @property
    def keeps_unreadable(self) -> bool:
        """Whether an item with a text is kept without its image, if that cannot be read."""
        return self.missing == "keep" and self.on_error == "skip"


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Extract an encoder's features of every item into memory-mapped arrays, or import arrays of your own."""

    shards: Path
    """Packed data set."""
    encoder: EncoderConfig | None = None
    """Encoder to read features from: `--encoder.model` is an open_clip name (with `--encoder.pretrained`, a tag), a folder, or
    a run that tuned an encoder; `--encoder.image` and `--encoder.text` are separate models."""
    image_npy: Path | None = None
    """Image features of your own instead of an encoder: `.npy` with a row for each item (row r is item r where item ids are
    row numbers, else rows follow the packed items), or `.parquet` with a column of item ids."""
    text_npy: Path | None = None
    """Text features of your own, as for images."""
    item_column: str = "item_id"
    """Column of the item ids in a `.parquet` file of features."""
    reuse: Path | None = None
    """Features folder to copy instead of computing it again: that of another split of the same items, by the same encoder in
    the same precision."""
    raw: bool = False
    """Keep rows as the encoder or your own arrays give them; by default they are scaled to length 1."""
    out: Path
    """Folder for `image.npy`, `text.npy` and `manifest.json`."""
    batch_size: int = 256
    """Items per forward pass and rank."""
    workers: int = 0
    """Loader processes per rank; 0 decodes in the rank's own process."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Floating-point precision of the encoder."""
    strict: bool = False
    """Refuse images that were packed at fewer pixels than the encoder takes, instead of warning of them."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N` (one process only), or `auto`: a GPU where there is one."""
    timeout: float = 3600.0
    """Seconds that a rank waits for the others at the end, or for its own next batch, before it stops with exit code 3."""

    def __post_init__(self) -> None:
        arrays = self.image_npy or self.text_npy
        beside = "image_npy" if self.image_npy else "text_npy"
        require(arrays is None or self.encoder is None, beside, arrays, "none with an encoder; leave out one of them")
        require(
            arrays is not None or self.encoder is not None,
            "encoder",
            None,
            "--encoder.model or --encoder.image and --encoder.text, or else --image_npy and --text_npy",
        )
        require(self.reuse is None or self.encoder is not None, "reuse", self.reuse, "none with arrays of your own")
        require_timeout(self.timeout)
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        require_processes("workers", self.workers, least=0)
        require_device(self.device)


IMPORTERS = {
    "amazon": "ptmrec_dist.data.importers.amazon:Amazon",
    "hm": "ptmrec_dist.data.importers.retail:HM",
    "huggingface": "ptmrec_dist.data.importers.tables:HuggingFace",
    "microlens": "ptmrec_dist.data.importers.covers:MicroLens",
    "mmrec": "ptmrec_dist.data.importers.tables:MMRec",
    "movielens": "ptmrec_dist.data.importers.films:MovieLens",
    "pixelrec": "ptmrec_dist.data.importers.covers:PixelRec",
    "recbole": "ptmrec_dist.data.importers.tables:RecBole",
    "yelp": "ptmrec_dist.data.importers.retail:Yelp",
}
"""Format of a published data set to the importer that reads it."""


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Read a published data set and write the tables that `ptmrec pack` reads."""

    leading: ClassVar[str] = "format"
    """Setting that the first word of the command line gives."""

    format: str
    """`amazon` (reviews of 2014, 2018, 2023), `hm`, `huggingface`, `microlens`, `mmrec`, `movielens`, `pixelrec`, `recbole` or
    `yelp`."""
    source: Path
    """Folder with the files of the data set, as they were published."""
    out: Path
    """Folder for `items.parquet`, `interactions.parquet` and `import.json`."""

    def __post_init__(self) -> None:
        require(self.format in IMPORTERS, "format", self.format, f"one of {', '.join(IMPORTERS)}")

    @property
    def importer(self) -> str:
        """`module:class` of the importer."""
        return IMPORTERS[self.format]
