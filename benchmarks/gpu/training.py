"""Compare training steps at 96 pixels, without data loading, with the loops of other libraries.

python -m benchmarks.gpu.training [--quick] [--out DIR] [--seconds 300]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.gpu import peers
from benchmarks.gpu.device import (
    CUDA,
    END,
    GPU_NAME,
    LR,
    WORLD,
    Contender,
    Function,
    create_config,
    create_contenders,
    create_host_batch,
    describe_waits,
    device_rate_of,
    measure_copy_bandwidth,
    measure_seconds,
    measure_upload_bandwidth,
    median,
)
from benchmarks.gpu.graphs import capture_step
from benchmarks.timing import QUICK, Result, interleave, publish
from benchmarks.two_t4s import TRAFFIC
from claris_kaggle.data.patches import PATCH_BYTES
from claris_kaggle.models.factory import create_model
from claris_kaggle.training.learner import _Learner, _train_step

BATCH, STEPS, ROUNDS = (4, 1, 1) if QUICK else (128, 10, 5)
CLARIS = "claris, fp16, channels-last"


def new_learner(precision: str, *, compiled: bool = False) -> _Learner:
    """Return a new learner on the device."""
    config = create_config(precision, BATCH)
    return _Learner(config, WORLD, create_model(config.model), compiled=compiled and CUDA)


def train_steps(learner: _Learner) -> Function:
    """Return a function that makes training steps on a uint8 batch from the host."""
    batch = create_host_batch(BATCH)

    def train() -> None:
        for _ in range(STEPS):
            _train_step(learner, batch, LR)

    return train


def replay_steps(learner: _Learner) -> Function:
    """Return a function that makes the same steps with a CUDA graph."""
    batch = create_host_batch(BATCH)
    replay = capture_step(learner, batch, LR)

    def train() -> None:
        for _ in range(STEPS):
            replay(batch)

    return train


def contender_factories() -> dict[str, Callable[[], Contender]]:
    """Return functions that create the contenders that need no compilation."""
    images, batch = BATCH * STEPS, peers.create_float_batch(BATCH)
    skipped = min(4, STEPS - 1)

    def batches() -> list[tuple[peers.Tensor, peers.Tensor]]:
        return [batch] * STEPS

    def steps(create: Callable[[], Function], *, autotune: bool = True) -> Callable[[], Contender]:
        return device_rate_of(images, create, autotune=autotune)

    factories = {
        "reference loop, float32": steps(lambda: peers.run_all(peers.reference_loop(batches))),
        "timm's loop, fp16, channels-last": steps(lambda: peers.run_all(peers.timm_loop(batches))),
        CLARIS: steps(lambda: train_steps(new_learner("fp16"))),
        "claris, bf16": steps(lambda: train_steps(new_learner("bf16"))),
        "claris without cuDNN autotuning": steps(lambda: train_steps(new_learner("fp16")), autotune=False),
        "claris as a CUDA graph": steps(lambda: replay_steps(new_learner("fp16"))),
    }
    if peers.has_lightning():
        factories["Lightning, 16-mixed"] = lambda: peers.lightning_contender(
            lambda: [batch] * (STEPS + skipped), skipped
        )
    return factories


def compiled_factories(facts: dict[str, str]) -> dict[str, Callable[[], Contender]]:
    """Return functions that create the contenders that need compilation."""

    def compiled() -> Function:
        train = train_steps(new_learner("fp16", compiled=True))
        facts["first compiled steps, with the compiler cache of earlier processes"] = f"{measure_seconds(train):.0f} s"
        return train

    def recorded() -> Function:
        return replay_steps(new_learner("fp16", compiled=True))

    return {
        "claris, compiled": device_rate_of(BATCH * STEPS, compiled, autotune=True),
        "claris, compiled, as a CUDA graph": device_rate_of(BATCH * STEPS, recorded, autotune=True),
    }


def compare(contenders: Mapping[str, Contender], facts: dict[str, str], bandwidth: float, rounds: int) -> None:
    """Measure the contenders, which have run once, print the result and save it."""
    rates = interleave(contenders, rounds, warm_up=0, end=END)
    used = median(rates[CLARIS]) * TRAFFIC["train"] / bandwidth
    facts[f"share of the GPU's copy bandwidth of {bandwidth / 1e9:,.0f} GB/s"] = f"{used:.0%}"
    publish(Result("gpu_training", f"training DenseNet-121, batch {BATCH}, {GPU_NAME}", "images/s", rates, facts))


def main() -> None:
    """Run the benchmark without compilation and save the result, then again with compiled contenders."""
    bandwidth, upload = measure_copy_bandwidth(), measure_upload_bandwidth()
    facts = {
        "waits for the device in a step": describe_waits(train_steps(new_learner("fp16"))),
        "copy from pinned memory to the GPU": f"{upload / 1e9:.1f} GB/s, that is {upload / PATCH_BYTES:,.0f} patches/s",
        "Lightning": "measured" if peers.has_lightning() else "not installed",
    }
    contenders = create_contenders(contender_factories(), facts)
    compare(contenders, facts, bandwidth, rounds=2)
    compare({**contenders, **create_contenders(compiled_factories(facts), facts)}, facts, bandwidth, ROUNDS)


if __name__ == "__main__":
    main()
