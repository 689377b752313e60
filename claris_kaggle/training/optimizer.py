"""The optimizer of a run: torch's AdamW, or another of timm's optimizers by name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import UsageError, name_few

_DEFAULT_OPTIMIZER = "adamw"
# Prefixes of optimizers that do not train here, with the reason.
_UNSUITABLE = {
    "bnb": "it needs the package bitsandbytes",
    "fused": "it needs the package apex",
    "kron": "it draws random numbers that a checkpoint does not store",
    "adahessian": "it needs second derivatives",
}


def _require_optimizer(name: str) -> None:
    """Raise an error if timm has no optimizer of that name, or if training cannot use it.

    Raises:
        UsageError: the message suggests similar names.
    """
    if name == _DEFAULT_OPTIMIZER:
        return
    from timm.optim import list_optimizers

    names: list[str] = list_optimizers()
    prefix = next((prefix for prefix in _UNSUITABLE if name.startswith(prefix)), "")
    if name in names and not prefix:
        return
    found = _UNSUITABLE[prefix] if name in names else "unknown timm optimizer"
    usable = [other for other in names if not other.startswith(tuple(_UNSUITABLE))]
    similar = get_close_matches(name.removeprefix(prefix) or name, usable, 3, cutoff=0.5)
    hint = f"Similar names: {name_few(similar)}" if similar else f"Try {_DEFAULT_OPTIMIZER}, nadamw, lion or sgd"
    raise UsageError(f"--optimizer is {name!r}", found, hint)


def _create_optimizer(groups: list[dict[str, Any]], config: TrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer of the config. It is fused on a GPU if it is the default.

    A fused optimizer skips gradients that are not finite by itself. With any other, each step waits for the device.

    Args:
        groups: parameter groups, each with `weight_decay` and `lr_scale`.
        config: names the optimizer.
        device: device of the parameters.
    """
    if config.optimizer == _DEFAULT_OPTIMIZER:
        return torch.optim.AdamW(groups, lr=0.0, fused=device.type == "cuda")
    from timm.optim import create_optimizer_v2

    # Adafactor ignores the rates of the groups if it is created with a rate of 0.
    optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=config.optimizer, lr=1.0)
    return optimizer
