"""A list of networks that suit this task, with their size, cost, normalisation and published weights."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from claris_kaggle.core.config import require_resolution
from claris_kaggle.core.console import Progress
from claris_kaggle.core.errors import UsageError
from claris_kaggle.models.sources import _find_cached, _pretrained_settings

# Counted by `python -m benchmarks.networks`, so that the usual input sizes need neither torch nor timm.
_TABLE = Path(__file__).with_name("networks.csv")
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
        million_parameters: number of weights with a classifier of two classes, in millions; None if the size is not
            accepted.
        gflop: of a forward pass of one image, in 1e9 operations (a multiply-add counts as two); None as above.
        normalisation: mean and standard deviation of the published weights, as in `pretrained_normalisation`.
        weights: repository of the published weights; empty if there are none.
        cached: True if these weights are in the local cache.
    """

    name: str
    accepted: bool
    million_parameters: float | None
    gflop: float | None
    normalisation: str
    weights: str
    cached: bool


def list_networks(pattern: str = "", side: int = 192) -> list[_NetworkFacts]:
    """Return the networks that suit this task, or all of timm's whose name has the pattern.

    A table has the facts of this module's networks at usual input sizes. Other networks and sizes are counted on
    tensors without data, in a second or two for each network.

    Args:
        pattern: part of a name, or a pattern with `*`; empty for the list of this module.
        side: input size in pixels.
    Raises:
        UsageError: no network has such a name, or the size is not allowed.
    """
    require_resolution(side)
    names = _find_names(pattern) if pattern else _SUITABLE
    table = _read_network_table()
    with Progress("networks", len(names), "networks") as progress:
        rows = []
        for name in names:
            row = table.get(name, {})
            rows.append(_read_network(row, side) if str(side) in row else _count_network(name, side))
            progress.update(1)
    return rows


def _find_names(pattern: str) -> Sequence[str]:
    """Return the names of timm's networks that have the pattern.

    Raises:
        UsageError: no network has such a name.
    """
    import timm

    names: list[str] = timm.list_models(pattern if "*" in pattern else f"*{pattern}*")
    if not names:
        raise UsageError(f"no network of timm is named {pattern!r}", "expected a part of a name, such as convnext")
    return names


def _read_network_table() -> dict[str, dict[str, str]]:
    """Return the rows of the table by the name of the network. Columns with a number are GFLOP at that input size."""
    with _TABLE.open(encoding="utf-8", newline="") as file:
        return {row["network"]: row for row in csv.DictReader(file)}


def _read_network(row: Mapping[str, str], side: int) -> _NetworkFacts:
    """Return the facts of one network from its row of the table."""
    return _NetworkFacts(
        name=row["network"],
        accepted=True,
        million_parameters=float(row["million_parameters"]),
        gflop=float(row[str(side)]),
        normalisation=row["normalisation"],
        weights=row["weights"],
        cached=_find_cached(row["weights"]) is not None,
    )


def _count_network(name: str, side: int) -> _NetworkFacts:
    """Return the facts of one network from timm. Creates and calls the network on tensors without data."""
    from claris_kaggle.models.cost import network_cost
    from claris_kaggle.models.factory import pretrained_normalisation

    settings = _pretrained_settings(name)
    weights = (settings.hf_hub_id or "") if settings else ""
    try:
        cost = network_cost(name, side, precision="fp32")
    except UsageError:
        cost = None
    return _NetworkFacts(
        name=name,
        accepted=cost is not None,
        million_parameters=None if cost is None else cost.weights / 1e6,
        gflop=None if cost is None else cost.gflop,
        normalisation=pretrained_normalisation(name),
        weights=weights,
        cached=bool(weights) and _find_cached(weights) is not None,
    )
