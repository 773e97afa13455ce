"""How much memory a calculation asks for at once, the same on every machine."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Results(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        results = operator(*arguments, **(named or {}))
        sizes = [leaf.numel() * leaf.element_size() for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return results


def largest_tensor(function: Callable[[], Any]) -> int:
    """Bytes of the largest tensor that any operation of torch returns while `function` runs, backward passes included."""
    with _Results() as results:
        function()
    return results.largest


def peak_of_arrays(function: Callable[[], Any]) -> int:
    """Most bytes that Python and NumPy hold at once while `function` runs, beyond what they held before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
