"""The tuning methods, one module each, behind one function: `attach` attaches a method to the towers.

Afterwards exactly the parameters that the method trains require gradients, and these are what a run saves. With every
method but `prompt`, features are unchanged until something is trained.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ptmrec_dist.config import AdapterConfig, LastNConfig, LoraConfig, MethodConfig, PromptConfig
from ptmrec_dist.encoders.base import Tower
from ptmrec_dist.encoders.tuning import adapters, lora, prompts, unfrozen
from ptmrec_dist.errors import UserError


def attach(
    towers: Mapping[str, Tower], method: str, settings: MethodConfig | None, generator: torch.Generator
) -> Mapping[str, nn.Module]:
    """Attach a method to frozen towers.

    Args:
        towers: Modality to tower.
        method: `prompt`, `lora`, `adapter`, `last_n`, `full`, or `none`.
        settings: The method's settings; None for those that have none.
        generator: Source of the initial values.

    Returns:
        Modality to the attached modules that are not part of the tower itself: prompts.

    Raises:
        UserError: An unknown method, or one that a tower does not support; nothing is changed then.
    """
    if settings is not None and settings.towers != "all":
        towers = {modality: tower for modality, tower in towers.items() if modality == settings.towers}
        if not towers:
            return {}
    match method, settings:
        case "prompt", PromptConfig():
            return prompts.attach(towers, settings, generator)
        case "lora", LoraConfig():
            lora.attach(towers, settings, generator)
        case "adapter", AdapterConfig():
            adapters.attach(towers, settings, generator)
        case "last_n", LastNConfig():
            unfrozen.attach_last_n(towers, settings)
        case "full", None:
            unfrozen.attach_full(towers)
        case "none", None:
            pass
        case _:
            raise UserError(f"tuning.method: got {method!r} with {settings}, which is not a method with its settings")
    return {}


def method_settings(method: str, values: Mapping[str, object]) -> MethodConfig | None:
    """Make a method's settings from plain values, as in a file of tuned weights.

    Args:
        method: Name of the method.
        values: Field to value.

    Returns:
        The settings; None for methods that have none.
    """
    kinds = {"prompt": PromptConfig, "lora": LoraConfig, "adapter": AdapterConfig, "last_n": LastNConfig}
    return kinds[method](**values) if method in kinds else None
