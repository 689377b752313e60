"""Compare prediction with eight views at 96 pixels with the loops of other libraries.

python -m benchmarks.gpu.inference [--quick] [--out DIR] [--seconds 300]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import peers
from benchmarks.gpu.device import (
    CUDA,
    DEVICE,
    END,
    GPU_NAME,
    WORLD,
    Contender,
    Function,
    create_config,
    create_contenders,
    create_network,
    create_noise_pack,
    describe_waits,
    device_rate_of,
    measure_copy_bandwidth,
    measure_seconds,
    median,
    pin,
)
from benchmarks.gpu.graphs import capture_forward
from benchmarks.timing import QUICK, Result, interleave, publish
from benchmarks.two_t4s import TRAFFIC
from claris_kaggle.data.patches import PATCH_SHAPE
from claris_kaggle.inference.forward import _view_logits, predict_ids
from claris_kaggle.models.factory import fuse_batch_norm

BLOCK, BLOCKS, VIEWS, ROUNDS = (4, 2, 8, 1) if QUICK else (512, 8, 8, 5)
CLARIS = "claris, fp16, channels-last"


def create_claris_network(*, fused: bool = True) -> nn.Module:
    """Return the network as `claris predict` uses it."""
    model = create_network()
    return fuse_batch_norm(model) if fused else model.eval()


def create_host_block() -> Tensor:
    """Return a block of noise in pinned memory."""
    return pin(torch.randint(0, 256, (BLOCK, *PATCH_SHAPE), dtype=torch.uint8))


def predict_views(model: Any, precision: str = "fp16") -> Function:
    """Return a function that predicts eight views of a block from the host."""
    images, config = create_host_block(), create_config(precision, BLOCK)

    def predict() -> None:
        with torch.inference_mode():
            _view_logits(model, images.to(DEVICE, non_blocking=True), config, VIEWS)

    return predict


def replay_views(model: Any) -> Function:
    """Return a function that makes the same prediction with a CUDA graph."""
    images, config = create_host_block(), create_config("fp16", BLOCK)
    with torch.inference_mode():
        replay = capture_forward(lambda block: _view_logits(model, block, config, VIEWS), images.to(DEVICE))

    def predict() -> None:
        with torch.inference_mode():
            replay(images)

    return predict


def compile_network() -> Any:
    """Return the network, compiled for blocks of one size."""
    return torch.compile(create_claris_network(), dynamic=False) if CUDA else create_claris_network()


def predict_with_loader() -> Function:
    """Return a function that predicts several blocks with the loader."""
    pack, model = create_noise_pack(BLOCK * BLOCKS), create_claris_network()
    workers = 4 if CUDA else 0
    return lambda: predict_ids(model, pack, pack.ids, WORLD, create_config("fp16", BLOCK), views=VIEWS, workers=workers)


def contender_factories() -> dict[str, Callable[[], Contender]]:
    """Return functions that create the contenders that need no compilation."""
    images, labels = peers.create_float_batch(BLOCK)

    def views(create: Callable[[], Function], *, autotune: bool = False) -> Callable[[], Contender]:
        return device_rate_of(BLOCK, create, autotune=autotune)

    def lightning() -> Contender:
        rate = peers.lightning_contender(lambda: [(images, labels)] * (VIEWS + 2), 2, predict=True)
        return lambda: rate() / VIEWS

    factories = {
        "reference, float32": views(lambda: peers.predict_with_reference(images, VIEWS)),
        "timm's loop, fp16, channels-last": views(lambda: peers.predict_with_timm(images, VIEWS)),
        CLARIS: views(lambda: predict_views(create_claris_network())),
        "claris, bf16": views(lambda: predict_views(create_claris_network(), "bf16")),
        "claris with cuDNN autotuning": views(lambda: predict_views(create_claris_network()), autotune=True),
        "claris without fused batch norm": views(lambda: predict_views(create_claris_network(fused=False))),
        "claris as a CUDA graph": views(lambda: replay_views(create_claris_network())),
        "claris with its loader": device_rate_of(BLOCK * BLOCKS, predict_with_loader),
    }
    return {**factories, **({"Lightning, 16-mixed": lightning} if peers.has_lightning() else {})}


def compiled_factories(facts: dict[str, str]) -> dict[str, Callable[[], Contender]]:
    """Return functions that create the contenders that need compilation."""
    model = compile_network()

    def compiled() -> Function:
        predict = predict_views(model)
        facts["first compiled block, with the compiler cache of earlier processes"] = (
            f"{measure_seconds(predict):.0f} s"
        )
        return predict

    return {
        "claris, compiled": device_rate_of(BLOCK, compiled),
        "claris, compiled, as a CUDA graph": device_rate_of(BLOCK, lambda: replay_views(model)),
    }


def compare(contenders: Mapping[str, Contender], facts: dict[str, str], bandwidth: float, rounds: int) -> None:
    """Measure the contenders, which have run once, print the result and save it."""
    rates = interleave(contenders, rounds, warm_up=0, end=END)
    used = median(rates[CLARIS]) * VIEWS * TRAFFIC["predict"] / bandwidth
    facts[f"share of the GPU's copy bandwidth of {bandwidth / 1e9:,.0f} GB/s"] = f"{used:.0%}"
    publish(
        Result("gpu_inference", f"eight views of DenseNet-121, block {BLOCK}, {GPU_NAME}", "patches/s", rates, facts)
    )


def main() -> None:
    """Run the benchmark without compilation and save the result, then again with compiled contenders."""
    waits = describe_waits(predict_views(create_claris_network()))
    bandwidth, facts = measure_copy_bandwidth(), {"waits for the device in a block": waits}
    contenders = create_contenders(contender_factories(), facts)
    compare(contenders, facts, bandwidth, rounds=2)
    compare({**contenders, **create_contenders(compiled_factories(facts), facts)}, facts, bandwidth, ROUNDS)


if __name__ == "__main__":
    main()
