"""Prediction with eight views at 96 pixels, compared with the loops of other libraries.

python -m benchmarks.gpu.inference [--quick] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import peers
from benchmarks.gpu.card import (
    CARD,
    CUDA,
    DEVICE,
    WORLD,
    Contender,
    Work,
    begin_each,
    channels_last_network,
    config_of,
    copy_bandwidth,
    median,
    noise_pack,
    pinned,
    rate_of,
    seconds_of,
    waits,
)
from benchmarks.gpu.graphs import capture_forward
from benchmarks.timing import QUICK, Result, interleave, publish
from benchmarks.two_t4s import TRAFFIC
from claris_kaggle.data.patches import PATCH_SHAPE
from claris_kaggle.inference.forward import _view_logits, predict_ids
from claris_kaggle.models.factory import fuse_batch_norm

BLOCK, BLOCKS, VIEWS, ROUNDS = (4, 2, 8, 1) if QUICK else (512, 8, 8, 5)
OURS = "ours, fp16, channels-last"


def our_model(*, folded: bool = True) -> nn.Module:
    """Return the network as `claris predict` uses it."""
    model = channels_last_network()
    return fuse_batch_norm(model) if folded else model.eval()


def host_block() -> Tensor:
    """Return a block of noise on the host, as the loader gives it."""
    return pinned(torch.randint(0, 256, (BLOCK, *PATCH_SHAPE), dtype=torch.uint8))


def our_views(model: Any, precision: str = "fp16") -> Work:
    """Return the prediction of eight views of a block from the host."""
    images, config = host_block(), config_of(precision, BLOCK)

    def work() -> None:
        with torch.inference_mode():
            _view_logits(model, images.to(DEVICE, non_blocking=True), config, VIEWS)

    return work


def recorded_views(model: Any) -> Work:
    """Return the same prediction, replayed from a CUDA graph."""
    images, config = host_block(), config_of("fp16", BLOCK)
    with torch.inference_mode():
        replay = capture_forward(lambda block: _view_logits(model, block, config, VIEWS), images.to(DEVICE))

    def work() -> None:
        with torch.inference_mode():
            replay(images)

    return work


def compiled_model() -> Any:
    """Return the network, compiled for blocks of one size."""
    return torch.compile(our_model(), dynamic=False) if CUDA else our_model()


def our_prediction() -> Work:
    """Return the prediction of several blocks, with the loader."""
    pack, model = noise_pack(BLOCK * BLOCKS), our_model()
    workers = 4 if CUDA else 0
    return lambda: predict_ids(model, pack, pack.ids, WORLD, config_of("fp16", BLOCK), views=VIEWS, workers=workers)


def makers() -> dict[str, Callable[[], Contender]]:
    """Return the contenders that need no compilation."""
    images, labels = peers.float_batch(BLOCK)

    def views(work: Callable[[], Work], *, trials: bool = False) -> Callable[[], Contender]:
        return lambda: rate_of(BLOCK, work(), trials=trials)

    def lightning() -> Contender:
        rate = peers.lightning_rate(lambda: [(images, labels)] * (VIEWS + 2), 2, predict=True)
        return lambda: rate() / VIEWS

    found = {
        "reference, float32": views(lambda: peers.reference_views(images, VIEWS)),
        "timm's loop, fp16, channels-last": views(lambda: peers.timm_views(images, VIEWS)),
        OURS: views(lambda: our_views(our_model())),
        "ours, bf16": views(lambda: our_views(our_model(), "bf16")),
        "ours with cuDNN's trials": views(lambda: our_views(our_model()), trials=True),
        "ours without folding": views(lambda: our_views(our_model(folded=False))),
        "ours as a CUDA graph": views(lambda: recorded_views(our_model())),
        "ours with its loader": lambda: rate_of(BLOCK * BLOCKS, our_prediction()),
    }
    return {**found, **({"Lightning, 16-mixed": lightning} if peers.has_lightning() else {})}


def compiled_makers(facts: dict[str, str]) -> dict[str, Callable[[], Contender]]:
    """Return the contenders that need compilation."""
    model = compiled_model()

    def compiled() -> Contender:
        work = our_views(model)
        facts["first compiled block, with what an earlier process left in the cache"] = f"{seconds_of(work):.0f} s"
        return rate_of(BLOCK, work)

    return {
        "ours, compiled": compiled,
        "ours, compiled, as a CUDA graph": lambda: rate_of(BLOCK, recorded_views(model)),
    }


def compare(found: Mapping[str, Callable[[], float]], facts: dict[str, str], bandwidth: float) -> None:
    """Measure the contenders, print the result and write it."""
    rates = interleave(found, rounds=ROUNDS, warm_up=1)
    used = median(rates[OURS]) * VIEWS * TRAFFIC["predict"] / bandwidth
    facts[f"share of the card's {bandwidth / 1e9:,.0f} GB/s in a copy"] = f"{used:.0%}"
    publish(Result("gpu_inference", f"eight views of DenseNet-121, block {BLOCK}, {CARD}", "patches/s", rates, facts))


def main() -> None:
    """Compare without compilation, write the result, and compare again with compiled contenders."""
    bandwidth, facts = copy_bandwidth(), {"waits for the device in a block": waits(our_views(our_model()))}
    found = begin_each(makers(), facts)
    compare(found, facts, bandwidth)
    compare({**found, **begin_each(compiled_makers(facts), facts)}, facts, bandwidth)


if __name__ == "__main__":
    main()
