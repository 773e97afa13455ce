"""States of tokens, taken out of a model's own forward.

Legend: B batch, N tokens, D width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ptmrec_dist.encoders.tower import TokenStates


def without_padding(states_BND: Tensor) -> TokenStates:
    """Describe sequences of which every token counts.

    Args:
        states_BND: [B, N, D].

    Returns:
        The same, with a mask that is true everywhere.
    """
    return TokenStates(states_BND, torch.ones(states_BND.shape[:2], dtype=torch.bool, device=states_BND.device))


def output_of(module: nn.Module, run: Callable[[], object]) -> Any:
    """Run a model for the output of one of its modules.

    Args:
        module: A module that the model calls once.
        run: Calls the model.

    Returns:
        What the module returned.
    """
    outputs: list[Any] = []
    with module.register_forward_hook(lambda module, inputs, output: outputs.append(output)):
        run()
    return outputs[0]


def timm_token_states(model: Any, pixels: Tensor) -> TokenStates | None:
    """Run a model of timm without its pooling and head.

    Args:
        model: The model.
        pixels: Normalised images, float32 [B, 3, H, W].

    Returns:
        States of its prefix tokens and patches; None if it returns a map of pixels, or several.
    """
    states = model.forward_features(pixels)
    return without_padding(states) if isinstance(states, Tensor) and states.dim() == 3 else None
