"""The table of recommenders: hyper-parameters and import path. A new recommender is a file and a row here.

The command line, its help, sweeps, experiments and the general tests are derived from the row.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

from ptmrec_dist.config.content_sequences import MoRecConfig, PMMRecConfig
from ptmrec_dist.config.sequences import (
    CARCAConfig,
    FDSAConfig,
    GRU4RecConfig,
    NextItNetConfig,
    SASRecConfig,
    UniSRecConfig,
    VQRecConfig,
)
from ptmrec_dist.config.table import Entry, bounded, configured, entry_of
from ptmrec_dist.config.table import RecommenderConfig as RecommenderConfig


@dataclass(frozen=True, kw_only=True)
class BPRConfig(RecommenderConfig):
    """Hyper-parameters of BPR."""

    dim: int = bounded(64, 1)
    """Width of the embeddings."""
    reg_weight: float | None = bounded(None, 0)
    """Weight of the squared norms; by default 1 / the mean number of training interactions of a user, at most 0.1."""


@dataclass(frozen=True, kw_only=True)
class LightGCNConfig(RecommenderConfig):
    """Hyper-parameters of LightGCN."""

    dim: int = bounded(64, 1)
    """Width of the embeddings."""
    layers: int = bounded(2, 0)
    """Propagation layers over the user-item graph."""
    reg_weight: float = bounded(1e-2, 0)
    """Weight of the squared norms; 0.0001 in the paper."""


@dataclass(frozen=True, kw_only=True)
class BUIRConfig(RecommenderConfig):
    """Hyper-parameters of BUIR."""

    dim: int = bounded(64, 1)
    """Width of the embeddings."""
    layers: int = bounded(2, 0)
    """Propagation layers over the user-item graph; 0: matrix factorisation (BUIR_ID)."""
    reg_weight: float = bounded(0.0, 0)
    """Weight of the squared norms."""
    momentum: float = bounded(0.995, 0, 1)
    """Momentum of the target embeddings: the fraction of their value kept at each step."""
    edge_dropout: float = bounded(0.2, 0, below=1)
    """Largest fraction of the edges that a step drops."""


@dataclass(frozen=True, kw_only=True)
class VBPRConfig(RecommenderConfig):
    """Hyper-parameters of VBPR."""

    dim: int = bounded(64, 1)
    """Width of each half: IDs and projected features."""
    reg_weight: float | None = bounded(None, 0)
    """Weight of the squared norms; by default 1 / the mean number of training interactions of a user, at most 0.1."""


@dataclass(frozen=True, kw_only=True)
class FREEDOMConfig(RecommenderConfig):
    """Hyper-parameters of FREEDOM."""

    dim: int = bounded(64, 1)
    """Width of the embeddings."""
    layers: int = bounded(2, 0)
    """Propagation layers over the user-item graph."""
    reg_weight: float = bounded(1e-3, 0)
    """Weight of the BPR terms of the projected features."""
    knn: int = bounded(10, 1)
    """Neighbours of an item in the item graph of each modality."""
    image_weight: float = bounded(0.1, 0, 1)
    """Weight of the image graph in the item graph; the text graph gets the rest. Ignored with one modality."""
    edge_dropout: float = bounded(0.8, 0, below=1)
    """Fraction of the edges that an epoch drops."""


@dataclass(frozen=True, kw_only=True)
class PrincipalConfig(RecommenderConfig):
    """Hyper-parameters of recommenders that map the features of all items in every step."""

    rank: int = bounded(512, 0)
    """Principal directions of a modality's features that are read, if the features are wider: the cost of mapping them is
    proportional to it. 0: all."""


@dataclass(frozen=True, kw_only=True)
class MultiViewConfig(PrincipalConfig):
    """Hyper-parameters that MGCN and SMORE have in common."""

    dim: int = bounded(64, 1)
    """Width of the embeddings and of every view."""
    layers: int = bounded(2, 0)
    """Propagation layers over the user-item graph."""
    reg_weight: float = bounded(1e-4, 0)
    """Weight of the squared norms; the default is the papers', sparse data may need up to 0.1."""
    cl_weight: float = bounded(0.01, 0)
    """Weight of the contrastive terms."""
    temperature: float = bounded(0.2, 0.025)
    """Temperature of the contrastive terms."""


@dataclass(frozen=True, kw_only=True)
class MGCNConfig(MultiViewConfig):
    """Hyper-parameters of MGCN."""

    knn: int = bounded(10, 1)
    """Neighbours of an item in the item graph of each modality."""


@dataclass(frozen=True, kw_only=True)
class SMOREConfig(MultiViewConfig):
    """Hyper-parameters of SMORE."""

    layers: int = bounded(3, 0)
    """Propagation layers over the user-item graph; 3 or 4 in the paper."""
    image_knn: int = bounded(10, 1)
    """Neighbours of an item in the image graph; 10 to 40 in the paper."""
    text_knn: int = bounded(10, 1)
    """Neighbours of an item in the text graph; 10 to 40 in the paper."""
    dropout: float = bounded(0.0, 0, below=1)
    """Fraction of the preference gates' values that training drops; 0 or 0.1 in the paper."""


@dataclass(frozen=True, kw_only=True)
class MMGCNConfig(PrincipalConfig):
    """Hyper-parameters of MMGCN."""

    dim: int = bounded(64, 1)
    """Width of the IDs and of every layer."""
    input_dim: int = bounded(256, 1)
    """Width of users' preferences and of projected features, the inputs of the first layer."""
    layers: int = bounded(3, 1)
    """Convolutions over the user-item graph."""
    reg_weight: float = bounded(1e-2, 0)
    """Weight of the mean squares of IDs and preferences."""
    frozen_ids: bool = False
    """Leave IDs and preferences as they were initialised, as common implementations do; `reg_weight` then has no effect."""


@dataclass(frozen=True, kw_only=True)
class LATTICEConfig(RecommenderConfig):
    """Hyper-parameters of LATTICE."""

    dim: int = bounded(64, 1)
    """Width of the embeddings and of the projected features."""
    layers: int = bounded(2, 0)
    """Propagation layers over the user-item graph."""
    reg_weight: float = bounded(1e-3, 0)
    """Weight of the squared norms."""
    knn: int = bounded(10, 2)
    """Nearest items of an item in the item graph of each modality, the item itself included."""
    initial_weight: float = bounded(0.9, 0, 1)
    """Weight of the graph of the features as they are; the learned graph gets the rest."""
    graph_gradient: Literal["once", "every"] = "once"
    """once: the first step of an epoch trains the learned graph, which then stays as it is, as published; every: each step
    does, as end-to-end training of the encoder needs."""


@dataclass(frozen=True, kw_only=True)
class MultiPassConfig(PrincipalConfig):
    """Hyper-parameters that SLMRec and MMGCL have in common."""

    dim: int = bounded(64, 1)
    """Width of the embeddings and of every pass."""
    layers: int = bounded(3, 0)
    """Propagation layers over the user-item graph."""
    reg_weight: float | None = bounded(None, 0)
    """Weight of the squared norms of the embeddings; by default 10 / the mean number of training interactions of a user, at
    most 1. It stands for the published weight decay, which shrinks an embedding in every step, not only in steps of its own."""
    cl_weight: float = bounded(0.1, 0)
    """Weight of the self-supervised terms."""
    cl_temperature: float = bounded(0.2, 0.025)
    """Temperature of the self-supervised terms."""
    debias: bool = True
    """Divide the weight of each item that a batch's users are contrasted with by its number of training interactions: batches
    have popular items more often. Raises recall where popular items are most of the test set; not in the papers."""


@dataclass(frozen=True, kw_only=True)
class SLMRecConfig(MultiPassConfig):
    """Hyper-parameters of SLMRec."""

    temperature: float = bounded(0.3, 0.025)
    """Temperature of the main term: the higher, the closer together scores stay, which sparse data need; 0.2 in the paper."""
    ssl: Literal["fac", "fd", "fm"] = "fac"
    """Self-supervised task: fac: items' IDs and modalities aligned in fine and coarse spaces; fd: two views that drop
    values; fm: two views that each lack one pass's items."""
    dropout: float = bounded(0.3, 0, below=1)
    """Fraction of the values that each layer of a view drops; `fd` alone reads it."""
    rank_by: Literal["cosine", "dot"] = "cosine"
    """Score of an item: what training compares, or the dot product, as common implementations rank."""


@dataclass(frozen=True, kw_only=True)
class MMGCLConfig(MultiPassConfig):
    """Hyper-parameters of MMGCL."""

    reg_weight: float = bounded(1e-3, 0)
    """Weight of the squared norms of the embeddings; stands for the weight decay of the published settings."""
    cl_weight: float = bounded(0.4, 0)
    """Weight of the self-supervised terms."""
    debias: bool = False
    """As for SLMRec; raises recall on sparse data."""
    ssl: Literal["intended", "code"] = "intended"
    """intended: both views and challenging negatives, as in the paper; code: twice the first view, as in the authors' code."""
    edge_dropout: float = bounded(0.05, 0, below=1)
    """Fraction of the edges that the first view lacks, and of the nodes whose edges the second one lacks."""


@dataclass(frozen=True)
class RecommenderEntry(Entry):
    """A row of the table."""

    config: type[RecommenderConfig]
    """Hyper-parameters with their defaults."""
    learning_rate: float = 1e-3
    """Adam's learning rate in stage 1, unless the settings give one."""


_PACKAGE = "ptmrec_dist.recommenders.general"
_SEQUENTIAL = "ptmrec_dist.recommenders.sequential"
RECOMMENDERS: dict[str, RecommenderEntry] = {
    "bpr": RecommenderEntry(BPRConfig, f"{_PACKAGE}.bpr:BPR", learning_rate=3e-3),
    "lightgcn": RecommenderEntry(LightGCNConfig, f"{_PACKAGE}.lightgcn:LightGCN", learning_rate=3e-3),
    "buir": RecommenderEntry(BUIRConfig, f"{_PACKAGE}.buir:BUIR"),
    "vbpr": RecommenderEntry(VBPRConfig, f"{_PACKAGE}.vbpr:VBPR", learning_rate=3e-3),
    "freedom": RecommenderEntry(FREEDOMConfig, f"{_PACKAGE}.freedom:FREEDOM"),
    "mgcn": RecommenderEntry(MGCNConfig, f"{_PACKAGE}.mgcn:MGCN", learning_rate=3e-3),
    "smore": RecommenderEntry(SMOREConfig, f"{_PACKAGE}.smore:SMORE"),
    "mmgcn": RecommenderEntry(MMGCNConfig, f"{_PACKAGE}.mmgcn:MMGCN"),
    "lattice": RecommenderEntry(LATTICEConfig, f"{_PACKAGE}.lattice:LATTICE", learning_rate=3e-3),
    "slmrec": RecommenderEntry(SLMRecConfig, f"{_PACKAGE}.slmrec:SLMRec", learning_rate=1e-2),
    "mmgcl": RecommenderEntry(MMGCLConfig, f"{_PACKAGE}.mmgcl:MMGCL"),
    "sasrec": RecommenderEntry(SASRecConfig, f"{_SEQUENTIAL}.sasrec:SASRec"),
    "gru4rec": RecommenderEntry(GRU4RecConfig, f"{_SEQUENTIAL}.gru4rec:GRU4Rec"),
    "nextitnet": RecommenderEntry(NextItNetConfig, f"{_SEQUENTIAL}.nextitnet:NextItNet"),
    "fdsa": RecommenderEntry(FDSAConfig, f"{_SEQUENTIAL}.fdsa:FDSA"),
    "carca": RecommenderEntry(CARCAConfig, f"{_SEQUENTIAL}.carca:CARCA"),
    "unisrec": RecommenderEntry(UniSRecConfig, f"{_SEQUENTIAL}.unisrec:UniSRec"),
    "vqrec": RecommenderEntry(VQRecConfig, f"{_SEQUENTIAL}.vqrec:VQRec"),
    "morec": RecommenderEntry(MoRecConfig, f"{_SEQUENTIAL}.morec:MoRec"),
    "pmmrec": RecommenderEntry(PMMRecConfig, f"{_SEQUENTIAL}.pmmrec:PMMRec"),
}
"""Name to recommender."""


def recommender_entry(name: str) -> RecommenderEntry:
    """Find a recommender by name.

    Args:
        name: A key of `RECOMMENDERS`.

    Returns:
        Its row.

    Raises:
        UserError: An unknown name.
    """
    return entry_of(RECOMMENDERS, "recommender", name)


def multimodal_recommenders() -> str:
    """List the recommenders that read features, for messages.

    Returns:
        Their names, separated by commas.
    """
    return ", ".join(name for name, entry in RECOMMENDERS.items() if entry.load().multimodal)


def recommender_config(name: str, **values: Any) -> RecommenderConfig:
    """Make hyper-parameters of a recommender by name.

    Args:
        name: A key of `RECOMMENDERS`.
        **values: Hyper-parameters that differ from its defaults.

    Returns:
        The hyper-parameters.

    Raises:
        UserError: An unknown name or hyper-parameter, or a value out of its range.
    """
    return cast(RecommenderConfig, configured(recommender_entry(name), name, "model", values))
