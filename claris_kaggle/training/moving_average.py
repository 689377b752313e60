"""The exponential moving average (EMA) of a network's weights and running statistics."""

from __future__ import annotations

import copy

import torch
from torch import nn

_WARM_UP_POWER = 2 / 3


class _MovingAverage:
    """The moving average of a network, with the results of timm's ModelEmaV3, whose import takes seconds.

    torch's AveragedModel counts its updates on the device, and would wait for a GPU in each step.

    The decay rises with the step from 0, because the first weights are far from the last ones: 1 - step ** (-2/3), at
    most `decay`.

    Args:
        model: the network in training, on its device.
        decay: weight of the average in each update, in 0..1.

    Attributes:
        module: the averaged network, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Add the network to the average after a training step. Does not wait for the device.

        Args:
            model: the network in training.
            step: number of training steps so far, at least 1. The first one copies the network.
        """
        decay = min(1 - step**-_WARM_UP_POWER, self.decay)
        pairs = list(zip(self.module.state_dict().values(), model.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]
        torch._foreach_lerp_([average for average, _ in floats], [value for _, value in floats], weight=1 - decay)
        if counts:
            torch._foreach_copy_([average for average, _ in counts], [value for _, value in counts])
