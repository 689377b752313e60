"""Test-time augmentation: the mean of the probabilities over the views of a patch."""

from __future__ import annotations

from torch import Tensor

from claris_kaggle.core.errors import DataError, UsageError

_VIEW_COUNTS = (1, 4, 8)


def require_views(views: int) -> int:
    """The number itself.

    Raises:
        UsageError: it is not 1 (none), 4 (turns) or 8 (turns and mirrorings).
    """
    if views not in _VIEW_COUNTS:
        raise UsageError(f"--views is {views}", "it must be 1, 4 or 8")
    return views


def average_views(logits: Tensor) -> Tensor:
    """Mean probability of label 1 over the views of each patch.

    Args:
        logits: float [V, B, 2], one row of V per view, before softmax.
    Returns:
        float32 [B] in 0..1; the order of B is kept.
    Raises:
        DataError: V is 0 or the last dimension is not 2.
    """
    if logits.ndim != 3 or logits.shape[0] == 0 or logits.shape[2] != 2:
        raise DataError(f"logits of shape {tuple(logits.shape)}", "[views, patches, 2] is needed")
    return logits.double().softmax(dim=2)[:, :, 1].mean(dim=0).float()
