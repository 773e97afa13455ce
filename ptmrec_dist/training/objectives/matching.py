"""Image-text matching (ITM): do an image and a text belong together, with hard negatives from the batch.

Li et al., Align before Fuse (ALBEF), arXiv 2107.07651, section 3.2; VLMo, arXiv 2111.02358, section 3.3: a negative is sampled
in proportion to its similarity in image-text contrast, so that the classifier sees pairs that are hard to tell apart.

Legend: B local pairs, G pairs of all ranks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOOR = 1e-4  # keeps every candidate possible when one similarity dominates


def hard_negatives(logits_BG: Tensor, own_B: Tensor, uniform_B: Tensor) -> Tensor:
    """Sample another candidate for each row, in proportion to the softmax of its similarity.

    Args:
        logits_BG: Similarities divided by temperature, [B, G], G at least 2.
        own_B: Column of each row's own pair, which is not sampled, int64 [B].
        uniform_B: Random numbers in [0, 1), [B].

    Returns:
        Sampled column of each row, int64 [B].
    """
    weights_BG = logits_BG.detach().double().softmax(dim=1) + _FLOOR
    weights_BG.scatter_(1, own_B[:, None], 0.0)
    cumulative_BG = weights_BG.cumsum(dim=1)
    reached_B1 = uniform_B.double()[:, None] * cumulative_BG[:, -1:]
    return torch.searchsorted(cumulative_BG, reached_B1, right=True).squeeze(1)


def matching_loss(pairs_B2: Tensor, other_images_B2: Tensor, other_texts_B2: Tensor) -> Tensor:
    """Compute the classification losses of the pairs and their negatives.

    Args:
        pairs_B2: Logits of no and yes for this rank's pairs, [B, 2].
        other_images_B2: Those of its texts with sampled images, [B, 2].
        other_texts_B2: Those of its images with sampled texts, [B, 2].

    Returns:
        Cross-entropy of each, [3 * B].
    """
    logits = torch.cat([pairs_B2, other_images_B2, other_texts_B2])
    targets = torch.arange(len(logits), device=logits.device) < len(pairs_B2)
    return F.cross_entropy(logits.float(), targets.long(), reduction="none")
