"""Settings of the commands that tune an encoder with a recommender: stage 2 and joint training."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ptmrec_dist.config.common import (
    FindsEncoder,
    ReadsRun,
    TrackingConfig,
    require,
    require_device,
    require_processes,
    require_seeds,
    require_timeout,
)
from ptmrec_dist.config.content_sequences import PMMRecConfig
from ptmrec_dist.config.next_item import NextItemConfig
from ptmrec_dist.config.sequences import SequenceConfig
from ptmrec_dist.config.stage1 import ChoosesRecommender
from ptmrec_dist.config.tuning import TuningConfig, method_entry

Keep = Literal["best", "last"]
Schedule = Literal["cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class EncoderOptimConfig:
    """AdamW of the tuned weights of the encoder."""

    encoder_lr: float | None = None
    """Learning rate of the tuned weights of the encoder; by default that of the tuning method."""
    schedule: Schedule = "cosine"
    """cosine: learning rates rise over the first tenth of all steps, then fall to 0; constant: they do not change."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; biases, norms, embeddings and prompts have none."""
    grad_clip: float = 0.0
    """Largest norm of the gradient, to which it is clipped; 0 turns clipping off."""

    def __post_init__(self) -> None:
        for name in ("encoder_lr", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"optim.{name}", value, "0 or more")


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    """DeepSpeed ZeRO: what is divided over the ranks."""

    stage: Literal[0, 1, 2, 3] = 1
    """0: nothing; 1: optimiser state; 2: gradients too; 3: parameters too (for encoders too large for one device)."""


@dataclass(frozen=True, kw_only=True)
class TunesEncoder:
    """Settings of every command that tunes an encoder: method, optimiser, engine, and handling of failures."""

    tuning: TuningConfig = field(default_factory=TuningConfig)
    """Tuning method of the encoder."""
    optim: EncoderOptimConfig = field(default_factory=EncoderOptimConfig)
    """Optimiser."""
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    """DeepSpeed ZeRO."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Floating-point precision of the encoder; everything else is always fp32."""
    strict: bool = False
    """Refuse images that were packed at fewer pixels than the encoder takes, instead of warning of them."""
    cache_gib: float = 16.0
    """Most GiB in the run's folder, until it is complete, for what frozen blocks give before the first tuned one (last_n), so
    that these are run once for each item; at most half of the free disk. Items that do not fit run whole; 0: all do."""
    cuda_graphs: bool = False
    """On a GPU, record the passes of each tuned tower as CUDA graphs when a shape of its inputs comes a second time, at most 8
    shapes, and replay them: for batches so small that the host takes longer to launch kernels than the GPU to run them. Every
    shape holds its own memory, and frozen blocks are run (no `cache_gib`)."""
    workers: int = 0
    """Loader processes per rank; 0 decodes in the rank's own process."""
    checkpoint_every: int = 100
    """Steps between checkpoints; one is also written after every epoch."""
    keep_checkpoints: int = 2
    """Checkpoints kept."""
    check_every: int | None = None
    """Steps between reads of the losses, when the run stops if one is not finite and handles signals; by default 1 on a CPU
    and 10 on a GPU, where every read is a synchronisation."""
    timeout: float = 600.0
    """Seconds that a rank waits for the others, or for its own next step, before it stops with exit code 3."""
    max_damaged: float = 0.0
    """Largest fraction of a rank's items of an epoch that may be unreadable or missing: they are skipped and counted; beyond
    it the run stops with exit code 3."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N` (one process only), or `auto`: a GPU where there is one."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Tracking."""

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "keep_checkpoints"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(self.cache_gib >= 0, "cache_gib", self.cache_gib, "0 or more")
        self._check_cuda_graphs()
        require_processes("workers", self.workers, least=0)
        require(self.check_every is None or self.check_every >= 1, "check_every", self.check_every, "1 or more")
        require_timeout(self.timeout)
        require(0 <= self.max_damaged < 1, "max_damaged", self.max_damaged, "a fraction in [0, 1)")
        require_device(self.device)

    def _check_cuda_graphs(self) -> None:
        """Refuse what no recorded pass can do."""
        obstacles = {
            "--zero.stage 3, which moves parameters": self.zero.stage == 3,
            "--tuning.gradient_checkpointing true, which runs blocks again": self.tuning.gradient_checkpointing,
            "--tuning.method none, which trains no tower": self.tuning.method == "none",
        }
        for obstacle, found in obstacles.items():
            require(not (self.cuda_graphs and found), "cuda_graphs", self.cuda_graphs, f"false with {obstacle}")

    @property
    def encoder_lr(self) -> float:
        """Learning rate of the tuned weights of the encoder."""
        chosen = self.optim.encoder_lr
        return method_entry(self.tuning.method).learning_rate if chosen is None else chosen


@dataclass(frozen=True, kw_only=True)
class OptimConfig(EncoderOptimConfig):
    """AdamW of encoder and recommender."""

    recommender_lr: float = 1e-3
    """Learning rate of the recommender."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.recommender_lr >= 0, "optim.recommender_lr", self.recommender_lr, "0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainsBoth(TunesEncoder):
    """Settings of every command that trains encoder and recommender together: the loop over items and interactions."""

    out: Path
    """Run folder. Started again with the same settings, an interrupted run resumes."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser."""
    batching: Literal["item", "interaction"] = "item"
    """item: an epoch streams every item once with its interactions; interaction: an epoch visits every pair (the paper)."""
    batch_size: int = 256
    """Items (or pairs) per step, over all ranks."""
    users_per_item: int | None = None
    """Largest number of interactions of an item that an item-major step trains on, sampled anew each epoch; by default all."""
    accumulation: int = 1
    """Micro-batches per step; each has its own in-batch softmax, their gradients are averaged."""
    epochs: int = 6
    """Largest number of epochs."""
    keep: Keep = "last"
    """best: keep the epoch with the best result, and stop after `patience` evaluations without an improvement; last: train all
    epochs and keep the last."""
    patience: int = 5
    """Evaluations without an improvement before training stops, where the best is kept."""
    select_on: Literal["auto", "validation", "cold_validation"] = "auto"
    """Part that selects the best epoch, and in a sweep the best trial; auto: cold_validation where the split has cold
    items."""
    refresh_every: int | None = None
    """Epochs between refreshes of all items' features (each is followed by an evaluation). By default 1 where something reads
    them: the choice of the best epoch, a search, or a recommender that propagates features; otherwise only the last epoch's."""
    mask_validation_at_test: bool = False
    """Leave validation positives out of the ranking at test time (the literature keeps them in)."""
    refit: bool = False
    """Then train the recommender again on the tuned features, as `ptmrec refit` does, in the folder `refit` of the run's."""
    seed: int = 0
    """Seed of the new weights of the encoder, of the order of items and of negatives."""

    def __post_init__(self) -> None:
        super().__post_init__()
        tunes = self.tuning.method != "none"
        require(
            tunes or not self.refit,
            "refit",
            self.refit,
            "false with --tuning.method none: the features stay as they are",
        )
        for name in ("batch_size", "accumulation", "patience"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        refresh = self.refresh_every
        require(refresh is None or refresh >= 1, "refresh_every", refresh, "1 or more")
        require(self.epochs >= 0, "epochs", self.epochs, "0 or more")
        require_seeds("seed", self.seed)
        limit = self.users_per_item
        require(limit is None or limit >= 1, "users_per_item", limit, "1 or more")

    def require_sequences(self, recommender: str) -> None:
        """Refuse settings of batches of items or pairs with a recommender that is trained on sequences.

        Args:
            recommender: Its name.

        Raises:
            UserError: A setting is not the default.
        """
        with_it = f"with {recommender}: a sequence recommender is trained on users"
        require(self.batching == "item", "batching", self.batching, f"the default {with_it}")
        require(self.users_per_item is None, "users_per_item", self.users_per_item, f"none {with_it}")
        require(self.accumulation == 1, "accumulation", self.accumulation, f"1 {with_it}, whose items are shared")


@dataclass(frozen=True, kw_only=True)
class Stage2Config(ReadsRun, TrainsBoth):
    """Tune the encoder, guided by what stage 1 learned about users."""

    stage1: Path
    """Run folder of stage 1: the recommender to start from, the features and the encoder they came from."""
    kt_weight: float = 1.0
    """Weight of the knowledge transfer loss L_KT (eq. 13)."""
    teacher: Literal["stage1", "live"] = "stage1"
    """Teacher of the ID distribution: the model as trained by stage 1, or the live model (with stop-gradient)."""
    teacher_run: Path | None = None
    """Sequence recommenders: run of another one, best by IDs alone (sasrec), that teaches instead of the model."""
    user_states: Literal["modal", "teacher"] = "modal"
    """Sequence recommenders: states that L_KT scores features with: the model's own, which features give, or the
    teacher's, so that L_KT moves features alone."""
    teacher_scores: Literal["whole", "id"] = "whole"
    """whole: everything that the teacher scores with; id: its ID vectors alone (eq. 11 verbatim)."""
    temperature: float = 1.0
    """Temperature of both distributions of L_KT."""
    known_positives: Literal["mask", "keep"] = "keep"
    """Other items of the batch that are known positives of a user: left out of the user's distributions, or kept in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.kt_weight >= 0, "kt_weight", self.kt_weight, "0 or more")
        require(self.temperature > 0, "temperature", self.temperature, "more than 0")


@dataclass(frozen=True, kw_only=True)
class JointConfig(ChoosesRecommender, NextItemConfig, FindsEncoder, TrainsBoth):
    """Train encoder and recommender together, without stage 1 and without knowledge transfer."""

    shards: Path
    """Packed data set."""
    batch_size: int = 256
    """Items (or pairs) per step, over all ranks; sequence recommenders get as many users as have that many to predict,
    on average."""
    epochs: int = 100
    """Largest number of epochs."""
    keep: Keep = "best"
    """As in stage 2; by default best, because the number of epochs needed from scratch is not known beforehand."""
    patience: int = 10
    """Evaluations without an improvement before training stops, where the best is kept."""
    transfer: Literal["none", "full", "items", "user", "text", "image", "prompts"] = "none"
    """Parts that are taken over from the run `transfer_from`, of the same sequence recommender, and are trained
    further: full: all; items: encoder, projections and fusion; user: the user encoder; text, image: the encoder and the
    projection of this modality, which alone is read, and the user encoder; prompts: those alone that a run of any recommender
    tuned in the same encoder."""
    transfer_from: Path | None = None
    """Run folder that `transfer` takes parts from."""
    pretraining: Literal["auto", "on", "off"] = "auto"
    """PMMRec's losses other than that of the next item: on as `model` says, or off; auto: off with a `transfer` of its parts,
    as in the paper, else on."""
    tokens: bool = True
    """PMMRec reads the encoder's tokens, as in the paper; false: an image or a text is one vector, as in stage 1, so that an
    encoder that stays frozen (`tuning.method none`) is not run."""

    def __post_init__(self) -> None:
        ChoosesRecommender.__post_init__(self)
        NextItemConfig.__post_init__(self)
        TrainsBoth.__post_init__(self)
        self._check_transfer()
        self._choose_losses()
        if not isinstance(self.model, SequenceConfig):
            self.require_no_next_item(self.recommender)
            return
        self.require_sequences(self.recommender)
        expected = "inbatch: the others compare items beyond those of a step, which are not encoded"
        require(self.loss == "inbatch", "loss", self.loss, expected)

    def _check_transfer(self) -> None:
        """Both settings or neither; a transfer of one modality reads that one alone."""
        whole, given = self.transfer != "none", self.transfer_from is not None
        require(whole or not given, "transfer_from", self.transfer_from, "no run without --transfer")
        require(
            given or not whole, "transfer_from", self.transfer_from, f"the run that --transfer {self.transfer} reads"
        )
        sequential = isinstance(self.model, SequenceConfig)
        require(sequential or not whole, "transfer", self.transfer, f"none with {self.recommender}, which has no parts")
        prompts = self.transfer != "prompts" or self.tuning.method == "prompt"
        require(prompts, "tuning.method", self.tuning.method, "prompt, with --transfer prompts")
        if self.transfer in ("text", "image"):
            allowed = ("auto", self.transfer)
            require(self.modalities in allowed, "modalities", self.modalities, f"{self.transfer}, which is transferred")
            object.__setattr__(self, "modalities", self.transfer)

    def _choose_losses(self) -> None:
        """Turn the losses of pre-training off where they are not wanted."""
        if not isinstance(self.model, PMMRecConfig):
            expected = f"the default with {self.recommender}, which reads no tokens; leave it out"
            require(self.tokens, "tokens", self.tokens, expected)
            expected = f"auto with {self.recommender}, which has no losses of pre-training"
            require(self.pretraining == "auto", "pretraining", self.pretraining, expected)
        elif self.pretraining == "off" or (self.pretraining == "auto" and self.transfer not in ("none", "prompts")):
            object.__setattr__(self, "model", replace(self.model, contrast="none", nid="none", rcl="none"))
