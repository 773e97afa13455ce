"""Masked language modelling (MLM): hidden words of a text are predicted from the rest of it and from its image.

Devlin et al., BERT, arXiv 1810.04805: of the tokens chosen, 80 % become the mask, 10 % a random token, 10 % stay. Whole words
are chosen, as in VLMo, arXiv 2111.02358.

Legend: B batch, N tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""Label of a token that is not predicted, which cross-entropy skips."""


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a vocabulary."""

    mask_id: int
    """Id of the mask."""
    special_V: Tensor
    """Tokens that no text has, boolean [V]: never chosen, and no random tokens."""
    continues_V: Tensor
    """Pieces that continue a word, boolean [V]."""

    def to(self, device: torch.device) -> "Vocabulary":
        """Move to a device.

        Args:
            device: Target device.

        Returns:
            The moved vocabulary.
        """
        return Vocabulary(self.mask_id, self.special_V.to(device), self.continues_V.to(device))


def mask_words(ids_BN: Tensor, uniform_BN3: Tensor, vocabulary: Vocabulary, rate: float) -> tuple[Tensor, Tensor]:
    """Hide whole words.

    Args:
        ids_BN: Token ids, int64 [B, N].
        uniform_BN3: Random numbers in [0, 1), [B, N, 3]: which words, what replaces a token, which random token.
        vocabulary: Of the ids.
        rate: Probability that a word is chosen.

    Returns:
        Ids with hidden tokens, int64 [B, N]; and the hidden ids, with -100 elsewhere, int64 [B, N].
    """
    positions_N = torch.arange(ids_BN.shape[1], device=ids_BN.device)
    starts_BN = torch.where(vocabulary.continues_V[ids_BN], 0, positions_N).cummax(dim=1).values
    by_word, by_token, by_id = uniform_BN3.unbind(dim=2)
    chosen_BN = (by_word.gather(1, starts_BN) < rate) & ~vocabulary.special_V[ids_BN]
    ordinary = (~vocabulary.special_V).nonzero().squeeze(1)
    random_BN = ordinary[(by_id * len(ordinary)).long()]
    replaced_BN = torch.where(by_token < 0.8, vocabulary.mask_id, torch.where(by_token < 0.9, random_BN, ids_BN))
    return torch.where(chosen_BN, replaced_BN, ids_BN), torch.where(chosen_BN, ids_BN, IGNORED)
