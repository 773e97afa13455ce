"""Contrast of images and texts, with the next item as a positive: VCL, ICL and NICL (PMMRec, arXiv 2312.09602, eq. 6 to 9).

For a text t whose item has the image v, with t' and v' of the user's next item, N the other users' items, and delta(a, b) =
exp(cos(a, b) / temperature); the same with images and texts exchanged, and the mean of both:

    VCL   -log delta(t, v) / (delta(t, v) + sum_N delta(t, v_j))
    ICL   -log delta(t, v) / (delta(t, v) + sum_N (delta(t, v_j) + delta(t, t_j)))
    NICL  -log (delta(t, v) + delta(t, v') + delta(t, t')) / (the same + sum_N (delta(t, v_j) + delta(t, t_j)))

The paper prints ICL's denominator also for NICL, which lacks two terms of the numerator: it is no probability, and the loss may
be negative; it tends to the complete one with many negatives.

Legend: G distinct items of the step, R positions with a next item, D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["vcl", "icl", "nicl"]


def contrast(
    text_GD: Tensor,
    image_GD: Tensor,
    current_R: Tensor,
    next_R: Tensor,
    log_negatives_RG: Tensor,
    kind: Kind,
    complete: bool,
    temperature: float,
) -> Tensor:
    """Compute the loss of positions.

    Args:
        text_GD: Vectors of texts, of any length, [G, D].
        image_GD: Vectors of images, of any length, [G, D].
        current_R: Column of the item at each position, int64 [R].
        next_R: Column of the item after it, int64 [R].
        log_negatives_RG: Logarithm of how often an item is a negative of the position, [R, G].
        kind: Which of the three.
        complete: NICL: the denominator has all terms of the numerator.
        temperature: Divides the cosines.

    Returns:
        Mean of both directions, [R].
    """
    own_R1, next_R1 = current_R[:, None], next_R[:, None]

    def direction(anchors_GD: Tensor, others_GD: Tensor) -> Tensor:
        """The loss of one modality's vectors against those of the other, [R]."""
        anchors_RD = F.embedding(current_R, anchors_GD) / temperature
        across_RG, within_RG = anchors_RD @ others_GD.T, anchors_RD @ anchors_GD.T
        positives = [across_RG.gather(1, own_R1)]
        if kind == "nicl":
            positives += [across_RG.gather(1, next_R1), within_RG.gather(1, next_R1)]
        others = [across_RG] if kind == "vcl" else [across_RG, within_RG]
        negatives = [scores_RG + log_negatives_RG for scores_RG in others]
        return _log_sum((positives if complete else positives[:1]) + negatives) - _log_sum(positives)

    text_GD, image_GD = F.normalize(text_GD, dim=1), F.normalize(image_GD, dim=1)
    return (direction(text_GD, image_GD) + direction(image_GD, text_GD)) / 2


def _log_sum(terms: list[Tensor]) -> Tensor:
    return torch.cat(terms, dim=1).logsumexp(dim=1)
