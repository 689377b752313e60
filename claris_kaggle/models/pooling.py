"""Global pooling before the classifier: timm's kinds, and generalised mean pooling (GeM)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_GEM = "gem"
_INITIAL_EXPONENT, MIN_VALUE = 3.0, 1e-6


class GeM(nn.Module):
    """Generalised mean pooling with a learned exponent (Radenovic et al. 2018). timm has no such layer.

    An exponent of 1 is average pooling, a large one is close to max pooling. Values below 1e-6 count as 1e-6.

    Args:
        dims: the two dimensions of the feature map that are pooled.
        keepdim: keep them with length 1.
    """

    def __init__(self, dims: tuple[int, int] = (2, 3), *, keepdim: bool = True) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), _INITIAL_EXPONENT))
        self.dims, self.keepdim = dims, keepdim

    def forward(self, features: Tensor) -> Tensor:
        """Return the pooled features, float32, because powers overflow in half precision."""
        powers = features.float().clamp(min=MIN_VALUE).pow(self.p)
        return powers.mean(self.dims, keepdim=self.keepdim).pow(1 / self.p)


def _timm_pooling(kind: str) -> str:
    """Return timm's name of the pooling. For GeM it is average pooling, which `_insert_gem` then replaces."""
    return "avg" if kind == _GEM else kind


def _insert_gem(model: nn.Module) -> None:
    """Replace the average pooling before the classifier by GeM, in place.

    Raises:
        ValueError: the head has no pooling layer, as in most vision transformers.
    """
    from timm.layers import SelectAdaptivePool2d

    found: list[Any] = [part for part in model.modules() if isinstance(part, SelectAdaptivePool2d)]
    if len(found) != 1 or found[0].is_identity():
        raise ValueError("no pooling layer")
    average = found[0].pool
    found[0].pool = GeM(getattr(average, "dim", (2, 3)), keepdim=not getattr(average, "flatten", False))


def _pooling_weights(model: nn.Module) -> set[str]:
    """Return the names of the exponents of GeM, which published weights do not have."""
    return {f"{name}.p" for name, part in model.named_modules() if isinstance(part, GeM)}


def _tiny_pooling(kind: str) -> tuple[nn.Module, int]:
    """Return the pooling of the tiny network, and the factor by which it multiplies the number of channels."""
    if kind in ("", "avg"):
        return nn.AdaptiveAvgPool2d(1), 1
    if kind == _GEM:
        return GeM(), 1
    from timm.layers import SelectAdaptivePool2d

    pool = SelectAdaptivePool2d(pool_type=kind)
    return pool, int(pool.feat_mult())
