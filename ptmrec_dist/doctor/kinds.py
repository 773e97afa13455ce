"""The table of findings: severity and remedy of each kind. Its name is its heading in docs/troubleshooting.md."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is."""

    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Kind:
    """One kind of finding."""

    severity: Severity
    """Severity, unless the check knows better."""
    remedy: str
    """What to do, on one line."""


_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

KINDS = {
    # Paths
    "not-recognised": Kind(
        _ERROR, "give a folder with tables, shards, features or a run, or --interactions and --items"
    ),
    # A catalogue
    "unreadable-table": Kind(_ERROR, "fix the file or the option that the message names"),
    "unknown-items": Kind(_WARNING, "write ids in both tables alike, or name the right columns with --columns.item"),
    "bad-rows": Kind(_WARNING, "fill in or remove these rows; pack leaves them out"),
    "duplicate-ids": Kind(_WARNING, "give each item one row; pack keeps the first that has image and text"),
    "missing-content": Kind(_WARNING, "fill in image and text, or pack with --missing keep"),
    "missing-words": Kind(
        _WARNING, "leave missing values empty; in pandas, do not turn columns into text before writing"
    ),
    "images-are-urls": Kind(_WARNING, "fetch the images by `ptmrec download` and give their paths"),
    "images-outside": Kind(_ERROR, "give paths below --images, without .. and not absolute"),
    "missing-images": Kind(_WARNING, "check --images and --columns.image, or fetch the files again"),
    "damaged-images": Kind(_WARNING, "fetch or export these files again"),
    "duplicate-images": Kind(_WARNING, "give each item an image of its own; placeholders are better left empty"),
    "near-duplicate-images": Kind(_WARNING, "merge items that are the same; keep such items in one part of a split"),
    "small-images": Kind(_WARNING, "use larger images, or an encoder of fewer pixels"),
    "long-texts": Kind(_WARNING, "put what matters first, choose other --columns.text, or an encoder that reads more"),
    # Interactions
    "below-core": Kind(_WARNING, "lower --core, or collect more interactions"),
    "popularity-skew": Kind(
        _WARNING, "compare with popularity (`ptmrec evaluate` does); report coverage and tail items"
    ),
    "repeated-interactions": Kind(_NOTE, "nothing, or pack with --repeats keep for what users take again"),
    "leaking-interactions": Kind(_ERROR, "put each pair of user and item into one part"),
    "leaking-content": Kind(_WARNING, "merge items with the same image and text before splitting"),
    "cold-items-in-training": Kind(_ERROR, "pack again: all interactions of a cold item are held out"),
    "time-travel": Kind(
        _WARNING, "split by time (--split leave_one_out or temporal), or do not call the result a forecast"
    ),
    "future-times": Kind(_WARNING, "check the unit and the column of times (--columns.time)"),
    "unreadable-times": Kind(_WARNING, "write seconds since 1970 or dates such as 2017-07-14 03:59 in every row"),
    # Shards, features, runs
    "damaged-shards": Kind(_ERROR, "copy the complete folder again, or pack again"),
    "too-few-shards": Kind(_ERROR, "pack again with --num_shards, or lower --ranks or --workers"),
    "damaged-features": Kind(_ERROR, "run ptmrec features again"),
    "features-of-other-data": Kind(_ERROR, "run ptmrec features on these shards"),
    "unusable-features": Kind(_ERROR, "fix the arrays, or the encoder that gave them"),
    "unfinished-run": Kind(_WARNING, "run its command again to resume it"),
    "damaged-run": Kind(_ERROR, "bring the old files back, or train again"),
    "missing-input": Kind(_ERROR, "bring it back, or give its folder by the option that the message names"),
    "changed-input": Kind(_ERROR, "bring the old one back, or train again on the new"),
    # This machine
    "encoder-not-loaded": Kind(_ERROR, "check --encoder.*, the network, and that the weights are on this machine"),
    "too-little-disk": Kind(_ERROR, "free space, or choose another disk for --out"),
    "too-little-memory": Kind(_ERROR, "lower --dim or --ranks, use ZeRO, or a machine with more memory"),
    "gpu-without-driver": Kind(_WARNING, "install a driver that fits the installed PyTorch"),
    "small-shared-memory": Kind(_WARNING, "start the container with --shm-size 8g, or use --workers 0"),
    "mlflow-unreachable": Kind(_ERROR, "start the server, correct MLFLOW_TRACKING_URI, or --tracking.enabled false"),
    "ray-unreachable": Kind(_ERROR, "start the cluster, or correct RAY_ADDRESS"),
}
