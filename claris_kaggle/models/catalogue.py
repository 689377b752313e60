"""A list of networks that suit this task, with their size, cost, normalisation and published weights."""

from __future__ import annotations

from dataclasses import dataclass

from claris_kaggle.core.console import Progress
from claris_kaggle.core.errors import UsageError
from claris_kaggle.models.cost import network_cost
from claris_kaggle.models.factory import own_normalisation
from claris_kaggle.models.sources import _find_cached, _pretrained_settings

# Networks of published solutions of the competition, and smaller relatives of them, by family.
_SUITABLE = (
    "densenet121", "densenet161", "densenet169", "densenet201", "resnet34", "resnet50", "seresnet50",
    "seresnext50_32x4d", "efficientnet_b0", "efficientnet_b1", "tf_efficientnet_lite0", "tf_efficientnet_lite1",
    "mobilenetv3_small_100", "convnext_tiny", "convnext_small", "swin_s3_tiny_224", "vit_small_r26_s32_224",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _NetworkFacts:
    """One network at one input size.

    Attributes:
        name: timm's name.
        accepted: True if the network accepts inputs of this size.
        megaweights: number of weights with a classifier of two classes, in millions; None if the size is not accepted.
        gflop: of a forward pass of one image, in 1e9 operations (a multiply-add counts as two); None as above.
        normalisation: mean and standard deviation of the published weights, as in `own_normalisation`.
        weights: repository of the published weights; empty if there are none.
        cached: True if these weights are in the local cache.
    """

    name: str
    accepted: bool
    megaweights: float | None
    gflop: float | None
    normalisation: str
    weights: str
    cached: bool


def list_networks(pattern: str = "", side: int = 224) -> list[_NetworkFacts]:
    """Return the networks that suit this task, or all of timm's whose name has the pattern.

    Computes no values: each network is created and called on tensors without data.

    Args:
        pattern: part of a name, or a pattern with `*`; empty for the list of this module.
        side: input size in pixels.
    Raises:
        UsageError: no network has such a name.
    """
    import timm

    wanted = pattern if "*" in pattern else f"*{pattern}*"
    names = timm.list_models(wanted) if pattern else list(_SUITABLE)
    if not names:
        raise UsageError(f"no network of timm is named {pattern!r}", "expected a part of a name, such as convnext")
    with Progress("networks", len(names), "networks") as progress:
        rows = []
        for name in names:
            rows.append(_describe_network(name, side))
            progress.update(1)
    return rows


def _describe_network(name: str, side: int) -> _NetworkFacts:
    """Return the facts of one network."""
    settings = _pretrained_settings(name)
    weights = (settings.hf_hub_id or "") if settings else ""
    try:
        cost = network_cost(name, side, precision="fp32")
    except UsageError:
        cost = None
    return _NetworkFacts(
        name=name,
        accepted=cost is not None,
        megaweights=None if cost is None else cost.weights / 1e6,
        gflop=None if cost is None else cost.gflop,
        normalisation=own_normalisation(name),
        weights=weights,
        cached=bool(weights) and _find_cached(weights) is not None,
    )
