"""Test-time augmentation: the mean probability over the views of a patch."""

from __future__ import annotations

from torch import Tensor

from claris_kaggle.core.errors import DataError, UsageError

_VIEW_COUNTS = (1, 4, 8)


def require_views(views: int) -> int:
    """Return the number of views after checking it.

    Raises:
        UsageError: it is not 1 (no augmentation), 4 (rotations) or 8 (rotations and flips).
    """
    if views not in _VIEW_COUNTS:
        raise UsageError(f"--views is {views}", "it must be 1, 4 or 8")
    return views


def average_views(logits: Tensor) -> Tensor:
    """Return the mean probability of label 1 over the views of each patch.

    Args:
        logits: float [V, B, 2], before softmax: V views of B patches.
    Returns:
        float32 [B] in 0..1, in the same order of patches.
    Raises:
        DataError: V is 0, or `logits` has another shape.
    """
    if logits.ndim != 3 or logits.shape[0] == 0 or logits.shape[2] != 2:
        raise DataError(f"logits of shape {tuple(logits.shape)}", "expected [views, patches, 2]")
    return logits.double().softmax(dim=2)[:, :, 1].mean(dim=0).float()
