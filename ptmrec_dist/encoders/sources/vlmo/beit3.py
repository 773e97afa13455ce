"""BEiT-3: a multiway transformer of which each modality has its own projections, norms and experts.

Wang et al., Image as a Foreign Language: BEiT Pretraining for Vision and Vision-Language Tasks, arXiv 2208.10442. Only the
softmax of attention over a pair is common to both modalities, so an image or a text alone passes an ordinary tower: pre-norm
blocks with two inner norms (Sub-LN, arXiv 2210.06423). The towers are what is built here, with their heads for retrieval.

Legend: B batch, N text tokens, M image tokens (class token and patches), D width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptmrec_dist.encoders.sources.vlmo.layers import Attention, FeedForward, Patches, Path, attends, initialise, run
from ptmrec_dist.errors import UserError

_EPS = 1e-5
FIRST_POSITION = 2
"""Row of a position table that belongs to the first token."""


@dataclass(frozen=True, kw_only=True)
class Beit3Config:
    """Sizes of a BEiT-3; the defaults are those of Base."""

    width: int = 768
    """Width D of the tokens."""
    layers: int = 12
    """Blocks of each tower."""
    heads: int = 12
    """Heads of attention."""
    hidden: int = 3072
    """Width inside an expert."""
    image_size: int = 224
    """Side of an image in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    text_length: int = 64
    """Largest number of tokens of a text."""
    positions: int = 1024
    """Rows of the table of text positions."""
    vocabulary: int = 64010
    """Size of the vocabulary."""
    pad_id: int = 1
    """Id of padding."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other.

        Raises:
            UserError: Heads that do not divide the width, patches that do not divide the image, too long texts.
        """
        longest = self.positions - FIRST_POSITION
        if self.width % self.heads or self.image_size % self.patch_size or self.text_length > longest:
            raise UserError(
                f"encoder.model: got {self}; expected heads that divide width, patches that divide the image, and text_length "
                f"at most {longest}"
            )


class TextEmbedding(nn.Module):
    """Word and position embeddings of a text; padding is zero.

    Args:
        config: Sizes.
    """

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.pad_id = config.pad_id
        self.word = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.positions, config.width)

    def forward(self, ids_BN: Tensor) -> Tensor:
        """Embed token ids int64 [B, N] as [B, N, D]."""
        positions_N = torch.arange(ids_BN.shape[1], device=ids_BN.device) + FIRST_POSITION
        embedded_BND: Tensor = self.word(ids_BN) + self.positions(positions_N)
        return embedded_BND * (ids_BN != self.pad_id)[..., None]


class Heads(nn.Module):
    """Projections that image-text retrieval compares.

    Args:
        width: Width D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor([1 / 0.07]).log())


class Beit3(nn.Module):
    """The two towers.

    Args:
        config: Sizes.
    """

    def __init__(self, config: Beit3Config) -> None:
        super().__init__()
        self.config = config
        self.image_embedding = Patches(config.width, config.image_size, config.patch_size, spare=FIRST_POSITION)
        self.text_embedding = TextEmbedding(config)
        self.blocks = nn.ModuleDict(
            {name: nn.ModuleList(_block(config) for _ in range(config.layers)) for name in ("image", "text")}
        )
        self.norm = nn.ModuleDict({name: nn.LayerNorm(config.width, eps=_EPS) for name in ("image", "text")})
        self.heads = Heads(config.width)
        self.paths = {name: list(blocks) for name, blocks in self.blocks.items()}  # type: ignore[call-overload]
        self.apply(initialise)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode normalised images float32 [B, 3, S, S] as final states [B, M, D], that of the class token first."""
        states_BMD: Tensor = self.norm["image"](run(self.paths["image"], self.image_embedding(pixels)))
        return states_BMD

    def encode_text(self, ids_BN: Tensor) -> Tensor:
        """Encode token ids int64 [B, N] as final states [B, N, D], that of the class token first."""
        seen = attends(ids_BN, self.config.pad_id)
        states_BND: Tensor = self.norm["text"](run(self.paths["text"], self.text_embedding(ids_BN), seen))
        return states_BND


def _block(config: Beit3Config) -> Path:
    width = config.width
    return Path(
        nn.LayerNorm(width, eps=_EPS),
        Attention(width, config.heads, key_bias=True, inner_norm=_EPS),
        nn.LayerNorm(width, eps=_EPS),
        FeedForward(width, config.hidden, inner_norm=_EPS),
    )
