"""VLMo: a transformer whose self-attention all modalities share and whose feed-forward layers are experts of a modality.

Bao et al., VLMo: Unified Vision-Language Pre-Training with Mixture-of-Modality-Experts, arXiv 2111.02358. An image or a text
alone passes the experts of its modality in every block. A pair passes attention over both sequences; in the last blocks
(`joint_layers`) it has an expert of its own.

Legend: B batch, N text tokens, M image tokens (class token and patches), D width, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmrec_dist.encoders.sources.vlmo.layers import Attention, FeedForward, Patches, Path, attends, initialise, run
from ptmrec_dist.errors import UserError

_EPS, _TEXT_EPS = 1e-6, 1e-12


@dataclass(frozen=True, kw_only=True)
class VlmoConfig:
    """Sizes of a VLMo; the defaults are those of Base-Plus."""

    width: int = 544
    """Width D of the tokens."""
    layers: int = 24
    """Blocks."""
    joint_layers: int = 3
    """Last blocks, which have an expert for pairs."""
    heads: int = 16
    """Heads of attention."""
    hidden: int = 2176
    """Width inside an expert."""
    image_size: int = 224
    """Side of an image in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    text_length: int = 40
    """Largest number of tokens of a text."""
    vocabulary: int = 30522
    """Size V of the vocabulary."""
    pad_id: int = 0
    """Id of padding."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other.

        Raises:
            UserError: Heads that do not divide the width, patches that do not divide the image, too many joint layers.
        """
        if self.width % self.heads or self.image_size % self.patch_size or not 0 <= self.joint_layers <= self.layers:
            raise UserError(
                f"encoder.model: got {self}; expected heads that divide width, patches that divide the image, and at most as "
                "many joint_layers as layers"
            )


class TextEmbedding(nn.Module):
    """Word and position embeddings of a text, as in BERT with its one segment.

    Args:
        config: Sizes.
    """

    def __init__(self, config: VlmoConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocabulary, config.width, padding_idx=config.pad_id)
        self.positions = nn.Embedding(config.text_length, config.width)
        self.segment = nn.Embedding(2, config.width)
        self.norm = nn.LayerNorm(config.width, eps=_TEXT_EPS)

    def forward(self, ids_BN: Tensor) -> Tensor:
        """Embed token ids int64 [B, N] as [B, N, D]."""
        positions_N = torch.arange(ids_BN.shape[1], device=ids_BN.device)
        first = torch.zeros_like(positions_N)
        embedded_BND: Tensor = self.norm(self.word(ids_BN) + self.segment(first) + self.positions(positions_N))
        return embedded_BND


class Block(nn.Module):
    """Attention that all modalities share, and one expert for each.

    Args:
        config: Sizes.
        joint: Whether there is an expert for pairs, too.
    """

    def __init__(self, config: VlmoConfig, joint: bool) -> None:
        super().__init__()
        experts = ("image", "text", "joint") if joint else ("image", "text")
        self.norm1 = nn.LayerNorm(config.width, eps=_EPS)
        self.attn = Attention(config.width, config.heads)
        self.norm2 = nn.ModuleDict({name: nn.LayerNorm(config.width, eps=_EPS) for name in experts})
        self.mlp = nn.ModuleDict({name: FeedForward(config.width, config.hidden) for name in experts})

    def path(self, modality: str) -> Path:
        """Return a modality's way through the block.

        Args:
            modality: `image` or `text`.

        Returns:
            A module that holds the block's own modules.
        """
        return Path(self.norm1, self.attn, self.norm2[modality], self.mlp[modality])

    def forward(self, pair: Tensor, texts: int, seen: Tensor) -> Tensor:
        """Apply the block to pairs.

        Args:
            pair: Tokens of text and image, [B, N + M, D].
            texts: Number of text tokens N.
            seen: Boolean [B, 1, N + M, N + M], as in `Attention`.

        Returns:
            [B, N + M, D].
        """
        pair = pair + self.attn(self.norm1(pair), seen)
        if "joint" in self.mlp:
            return pair + self._expert("joint", pair)
        experts = [self._expert("text", pair[:, :texts]), self._expert("image", pair[:, texts:])]
        return pair + torch.cat(experts, dim=1)

    def _expert(self, name: str, tokens: Tensor) -> Tensor:
        added: Tensor = self.mlp[name](self.norm2[name](tokens))
        return added


class MaskedWordHead(nn.Module):
    """Predicts masked tokens from their final states.

    Args:
        config: Sizes.
    """

    def __init__(self, config: VlmoConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=_TEXT_EPS)
        self.decoder = nn.Linear(config.width, config.vocabulary)

    def forward(self, states_BND: Tensor) -> Tensor:
        """Score every token of the vocabulary, [..., D] to [..., V]."""
        scores: Tensor = self.decoder(self.norm(F.gelu(self.dense(states_BND))))
        return scores


class Heads(nn.Module):
    """What the objectives compare: projections for ITC, a classifier of pairs for ITM, a decoder of words for MLM.

    Args:
        config: Sizes.
    """

    def __init__(self, config: VlmoConfig) -> None:
        super().__init__()
        width = config.width
        self.image, self.text = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        # Not 0-dimensional: DeepSpeed cannot partition a scalar.
        self.logit_scale = nn.Parameter(torch.tensor([1 / 0.07]).log())
        self.pooler, self.matching = nn.Linear(width, width), nn.Linear(width, 2)
        self.words = MaskedWordHead(config)

    def match(self, states_BND: Tensor) -> Tensor:
        """Score whether image and text belong together.

        Args:
            states_BND: Final states of pairs, [B, N + M, D].

        Returns:
            Logits of no and yes, [B, 2].
        """
        logits_B2: Tensor = self.matching(self.pooler(states_BND[:, 0]).tanh())
        return logits_B2


class Vlmo(nn.Module):
    """The unified encoder.

    Args:
        config: Sizes.
    """

    def __init__(self, config: VlmoConfig) -> None:
        super().__init__()
        self.config = config
        self.image_embedding = Patches(config.width, config.image_size, config.patch_size)
        self.text_embedding = TextEmbedding(config)
        self.types = nn.Embedding(2, config.width)  # 0 text, 1 image
        separate = config.layers - config.joint_layers
        self.blocks = nn.ModuleList(Block(config, joint=number >= separate) for number in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.heads = Heads(config)
        # In a plain dictionary: their modules are those of the blocks, and state has one name for each.
        self.paths = {
            modality: [block.path(modality) for block in self.blocks]  # type: ignore[operator]
            for modality in ("image", "text")
        }
        self.apply(initialise)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode images by their own experts.

        Args:
            pixels: Normalised images, float32 [B, 3, S, S].

        Returns:
            Final states, [B, M, D]; the first is that of the class token.
        """
        states_BMD: Tensor = self.norm(run(self.paths["image"], self._embed_image(pixels)))
        return states_BMD

    def encode_text(self, ids_BN: Tensor) -> Tensor:
        """Encode texts by their own experts.

        Args:
            ids_BN: Token ids, int64 [B, N].

        Returns:
            Final states, [B, N, D]; the first is that of the class token.
        """
        seen = attends(ids_BN, self.config.pad_id)
        states_BND: Tensor = self.norm(run(self.paths["text"], self._embed_text(ids_BN), seen))
        return states_BND

    def trained_by(self, objective: str) -> list[nn.Parameter]:
        """Return what an objective trains besides what features depend on.

        Args:
            objective: `itc`, `itm` or `mlm`.

        Returns:
            Its heads, and for `itm` and `mlm` the experts of pairs.
        """
        heads = self.heads
        if objective == "itc":
            return [*heads.image.parameters(), *heads.text.parameters(), heads.logit_scale]
        joint = [module for name, module in self.named_modules() if name.endswith((".norm2.joint", ".mlp.joint"))]
        own: list[nn.Module] = [heads.words] if objective == "mlm" else [heads.pooler, heads.matching]
        return [parameter for module in own + joint for parameter in module.parameters()]

    def encode_pair(self, pixels: Tensor, ids_BN: Tensor) -> Tensor:
        """Encode pairs of image and text together.

        Args:
            pixels: Normalised images, float32 [B, 3, S, S].
            ids_BN: Token ids, int64 [B, N].

        Returns:
            Final states, [B, N + M, D], texts first.
        """
        image_BMD, text_BND = self._embed_image(pixels), self._embed_text(ids_BN)
        seen = attends(F.pad(ids_BN, (0, image_BMD.shape[1]), value=-1), self.config.pad_id)
        pair = torch.cat([text_BND, image_BMD.to(text_BND.dtype)], dim=1)
        for block in self.blocks:
            pair = block(pair, ids_BN.shape[1], seen)
        states: Tensor = self.norm(pair)
        return states

    def _embed_image(self, pixels: Tensor) -> Tensor:
        embedded_BMD: Tensor = self.image_embedding(pixels) + self._type(1, pixels)
        return embedded_BMD

    def _embed_text(self, ids_BN: Tensor) -> Tensor:
        embedded_BND: Tensor = self.text_embedding(ids_BN) + self._type(0, ids_BN)
        return embedded_BND

    def _type(self, number: int, inputs: Tensor) -> Tensor:
        row_1D: Tensor = self.types(torch.full((1,), number, device=inputs.device))
        return row_1D
