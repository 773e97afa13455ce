"""Settings of `ptmrec experiment`."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ptmrec_dist.config.common import (
    EncoderConfig,
    Modalities,
    RayConfig,
    TrackingConfig,
    require,
    require_device,
    require_processes,
    require_seeds,
)
from ptmrec_dist.config.recommenders import RECOMMENDERS
from ptmrec_dist.config.tuning import METHODS

Paradigm = Literal[
    "frozen",
    "two_stage",
    "two_stage_refit",
    "two_stage_without_kt",
    "two_stage_without_kt_refit",
    "joint",
    "joint_refit",
    "contrastive",
    "pt",
    "ft",
    "ete",
    "ete_frozen",
    "transfer_full",
    "transfer_items",
    "transfer_user",
    "transfer_text",
    "transfer_image",
]
PARADIGMS_OF_THE_PAPER = {"pt": "frozen", "ft": "contrastive", "ete": "joint", "ete_frozen": "joint"}
"""Names in Large Multi-modal Encoders for Recommendation (arXiv 2310.20343), and the same paradigm here."""
TRANSFER = "transfer_"
"""What names of paradigms start with that take parts over from a run on other data."""


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Compare encoders, recommenders, tuning methods and training paradigms over splits and seeds, and write tables."""

    out: Path
    """Folder of the experiment. Started again, it resumes what is not finished; the grid may grow meanwhile."""
    results: Path | None = None
    """Folder of `tables` and `report.html`; by default `out`. With another one the same runs are compared in a second way."""
    shards: Path | None = None
    """Packed data set: one split. For several splits give `pack.interactions` instead."""
    pack: dict[str, Any] = field(default_factory=dict)
    """Settings of `ptmrec pack` (`{items: items.csv, interactions: interactions.csv, split: cold_items}`): the experiment packs
    the same catalogue once per split. With `shards` nothing is packed, and `split`, `core` and `image_size` are those that the
    data set must have been packed with."""
    splits: tuple[int, ...] = (0,)
    """Seeds of the splits that `pack` makes (`0,1,2,3,4`). With several, differences are tested over splits."""
    encoder: EncoderConfig | None = None
    """Encoder that everything starts from. None is needed by ID-only recommenders, nor with `--features.image_npy` and
    `--features.text_npy`, arrays of your own."""
    encoders: dict[str, EncoderConfig] = field(default_factory=dict)
    """Several encoders by name, instead of `encoder` (`{clip: {model: DIR}, minilm: {text: 'hf:DIR'}}`)."""
    recommenders: tuple[str, ...] = ("vbpr",)
    """Recommenders (`vbpr,freedom`), or names of `models`; ID-only recommenders run in the paradigm `frozen` alone."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Recommenders with settings of their own, by name (`{wide: {recommender: vbpr, lr: 0.0005, model: {dim: 256}}}`): those of
    stage 1, of which joint training takes `model`."""
    paradigms: tuple[Paradigm, ...] = ("frozen", "two_stage_without_kt", "two_stage")
    """Paradigms (`frozen,two_stage`). frozen: stage 1 alone; two_stage: stage 1, then stage 2 (two_stage_without_kt: without
    knowledge transfer); joint: both from scratch; contrastive: the encoder fine-tuned on pairs of image and text, then stage 1.
    ..._refit: the recommender is then trained again on the tuned features, and that run is compared. The names pt, ft and
    ete (pre-trained features, fine-tuned features, end to end) stand for frozen, contrastive and joint; ete_frozen, the control
    of ete, for joint without tuning. transfer_full, transfer_items, transfer_user, transfer_text, transfer_image: joint, first
    on `source`, then on the data with these parts of that run (PMMRec's five settings)."""
    source: Path | None = None
    """Packed data set, perhaps a merged one, that the paradigms `transfer_...` pre-train on."""
    methods: tuple[str, ...] = ("last_n",)
    """Ways of tuning the encoder (`last_n,prompt`), in all paradigms but `frozen`: names of tuning methods or of `variants`."""
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Methods with settings of their own, by name
    (`{last1: {tuning: {method: last_n}, last_n: {n: 1}, optim: {encoder_lr: 0.0001}}}`)."""
    modalities: tuple[Modalities, ...] = ("both",)
    """Modalities that the recommenders read (`both,text`); both: all that the encoder has."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds (`0,1,2`); every cell is run once per seed and split."""
    baseline: Paradigm | Literal["best"] = "frozen"
    """What every row is tested against: a paradigm, with the same recommender, modalities, encoder and, where it has one,
    method; or best: the best row with the same recommender and modalities."""
    baseline_encoder: str | None = None
    """Encoder of the baseline; by default the row's own."""
    family: Literal["part", "recommender"] = "part"
    """Tests that are corrected together: all of a part of the data, or those of a recommender, its modalities and a metric."""
    phase: Literal["test", "validation"] = "test"
    """Part of the data that tables and figures are about; validation: to choose among many cells before the test split is
    looked at."""
    metrics: tuple[str, ...] = ()
    """Metrics of the tables of accuracy (`hr@10,hr@50,ndcg@10`); by default those that all tables show."""
    dry_run: bool = False
    """Print the plan, what it leaves out and how much of it is finished, and stop."""
    features: dict[str, Any] = field(default_factory=dict)
    """Settings of `ptmrec features`."""
    stage1: dict[str, Any] = field(default_factory=dict)
    """Settings of `ptmrec stage1`, in every paradigm that has a stage 1."""
    tuned: dict[str, Any] = field(default_factory=dict)
    """Settings common to stage2, joint and contrastive: those of the methods, `optim`, `zero`, `batch_size`."""
    stage2: dict[str, Any] = field(default_factory=dict)
    """Further settings of `ptmrec stage2`."""
    joint: dict[str, Any] = field(default_factory=dict)
    """Further settings of `ptmrec joint`."""
    contrastive: dict[str, Any] = field(default_factory=dict)
    """Further settings of `ptmrec contrastive`."""
    cold_below: int | None = None
    """Also make tables of cold start, as `ptmrec evaluate --cold_below` measures it."""
    refit: dict[str, Any] = field(default_factory=dict)
    """Settings of `ptmrec refit`; the others are those of stage 1."""
    processes: int = 1
    """Concurrent runs, on this machine or on the cluster."""
    ranks: int = 1
    """Ranks of each run that tunes an encoder."""
    ray: RayConfig | None = None
    """Ray cluster to run on, the ranks of a run on one node; without it runs are on this machine. `out` and all inputs must
    be absolute paths on a file system shared by all nodes."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU where there is one."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Tracking; each cell is a child of the experiment's run."""

    def __post_init__(self) -> None:
        recommenders = [*RECOMMENDERS, *self.models]
        for name in self.recommenders:
            require(name in recommenders, "recommenders", name, f"some of {', '.join(recommenders)}")
        known = [*METHODS, *self.variants]
        for name in self.methods:
            require(name in known, "methods", name, f"some of {', '.join(known)}")
        for name in ("recommenders", "paradigms", "methods", "modalities", "seeds", "splits"):
            values = getattr(self, name)
            require(len(values) > 0, name, list(values), "one or more")
            require(len(set(values)) == len(values), name, list(values), "each only once")
            if name in ("seeds", "splits"):
                require_seeds(name, *values)
        known = [*self.paradigms, *(PARADIGMS_OF_THE_PAPER.get(name, name) for name in self.paradigms), "best"]
        expected = f"one of {', '.join(dict.fromkeys(known))}, or {self.baseline} among --paradigms"
        require(self.baseline in known, "baseline", self.baseline, expected)
        require(self.ranks >= 1, "ranks", self.ranks, "1 or more")
        if self.ray is None:
            require_processes("processes", self.processes)
        else:
            require(self.processes >= 1, "processes", self.processes, "1 or more")
        require(self.cold_below is None or self.cold_below >= 1, "cold_below", self.cold_below, "1 or more")
        require_device(self.device, indexed=self.ranks == 1 and self.ray is None)
        self._check_data()
        self._check_names()

    def _check_data(self) -> None:
        packs = "interactions" in self.pack
        require(packs != bool(self.shards), "shards", self.shards, "either --shards or --pack.interactions")
        require(packs or self.splits == (0,), "splits", list(self.splits), "none with --shards, which is one")
        for name in () if packs else self.pack.keys() - {"split", "core", "image_size"}:
            require(False, f"pack.{name}", self.pack[name], "none with --shards: nothing is packed")
        transfers = any(name.startswith(TRANSFER) for name in self.paradigms)
        expected = f"{'a' if transfers else 'no'} packed data set: --paradigms {TRANSFER}... read it, and nothing else"
        require(transfers == (self.source is not None), "source", self.source, expected)
        for name in ("out", "seed"):
            require(name not in self.pack, f"pack.{name}", self.pack.get(name), "none: the experiment chooses it")
        seeded = self.pack.get("split", "random") in ("random", "cold_items")
        several = len(self.splits) > 1
        require(
            seeded or not several, "splits", list(self.splits), f"one: {self.pack.get('split')} has no random splits"
        )

    def _check_names(self) -> None:
        given = sum(map(bool, (self.encoder, self.encoders, self.arrays)))
        require(given <= 1, "encoder", self.encoder, "one of --encoder, --encoders and arrays of --features")
        for setting in ("encoders", "models", "variants"):
            for name in getattr(self, setting):
                plain = re.fullmatch(r"[A-Za-z0-9_.-]+", name) and not name.startswith(".")
                require(bool(plain), setting, name, "names of letters, digits, _, - and .")
        chosen = self.baseline_encoder
        allowed = chosen is None or (chosen in self.encoders and self.baseline != "best")
        expected = f"one of {', '.join(self.encoders) or 'several --encoders'}, with a paradigm as the baseline"
        require(allowed, "baseline_encoder", chosen, expected)
        for name in self.variants:
            require(name not in METHODS, "variants", name, "a name that is not a tuning method's")
            method = self.method_of(name)
            for other in sorted(METHODS.keys() & self.variants[name].keys() - {method}):
                got = self.variants[name][other]
                require(False, f"variants.{name}.{other}", got, f"none: the tuning method of this variant is {method}")
        for name in self.models:
            require(name not in RECOMMENDERS, "models", name, "a name that is not a recommender's")
            self.recommender_of(name)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Modalities with features of the user's own, in the place of an encoder's."""
        return tuple(name for name in ("image", "text") if self.features.get(f"{name}_npy") is not None)

    @property
    def baseline_paradigm(self) -> str:
        """Paradigm of the baseline, by its own name; or `best`."""
        return PARADIGMS_OF_THE_PAPER.get(self.baseline, self.baseline)

    def recommender_of(self, name: str) -> str:
        """Return the recommender of an entry of `recommenders`.

        Args:
            name: A recommender or one of the models.

        Returns:
            The recommender.

        Raises:
            UserError: A model without one.
        """
        if name not in self.models:
            return name
        recommender = self.models[name].get("recommender")
        require(
            recommender in RECOMMENDERS, f"models.{name}.recommender", recommender, f"one of {', '.join(RECOMMENDERS)}"
        )
        return str(recommender)

    def method_of(self, name: str) -> str:
        """Return the tuning method of an entry of `methods`.

        Args:
            name: A tuning method or one of the variants.

        Returns:
            The tuning method.

        Raises:
            UserError: A variant without one.
        """
        if name not in self.variants:
            return name
        tuning = self.variants[name].get("tuning")
        method = tuning.get("method") if isinstance(tuning, dict) else None
        require(method in METHODS, f"variants.{name}.tuning.method", method, f"one of {', '.join(METHODS)}")
        return str(method)
