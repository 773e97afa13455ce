"""Retrieval of an item's text by its image, and the other way round.

Legend: N items, W width.
"""

from torch import Tensor

CUTOFF = 10
"""An item is found if its other half is among as many."""


def own_pair_recall(images_NW: Tensor, texts_NW: Tensor, cutoff: int = CUTOFF) -> dict[str, float]:
    """Compute how often an item's own other half is among the most similar of all items.

    Args:
        images_NW: Image features of length 1, float32 [N, W].
        texts_NW: Text features of the same items in the same space, float32 [N, W].
        cutoff: Number of most similar ones; of equally similar ones the own comes last.

    Returns:
        `image_to_text` and `text_to_image`: fractions of the N items.
    """
    cosines_NN = images_NW @ texts_NW.T
    own_N = cosines_NN.diagonal()
    # Not `>=`, so that rows that are not finite find nothing. The own is no less similar than itself: it is counted, too.
    ranked = {"image_to_text": ~(cosines_NN < own_N[:, None]), "text_to_image": ~(cosines_NN < own_N).T}
    return {name: float((above_NN.sum(dim=1) <= cutoff).float().mean()) for name, above_NN in ranked.items()}
