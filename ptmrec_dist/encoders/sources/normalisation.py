"""Normalisation of images on the device, where bytes have arrived: they take a quarter of the bandwidth of floats."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalisation:
    """Subtracts the mean of every channel and divides by its standard deviation.

    Args:
        mean: Of images with values from 0 to 1, one number per channel.
        std: Likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean = torch.tensor(mean).mul(255).view(1, -1, 1, 1)
        self._std = torch.tensor(std).mul(255).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise images.

        Args:
            images: uint8 [B, 3, H, W].

        Returns:
            float32 [B, 3, H, W].
        """
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        return images.to(torch.float32, copy=True).sub_(self._mean).div_(self._std)  # one copy, not three
