"""Training steps at 96 pixels without data loading, compared with the loops of other libraries.

python -m benchmarks.gpu.training [--quick] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.gpu import peers
from benchmarks.gpu.card import (
    CARD,
    CUDA,
    LR,
    WORLD,
    Contender,
    Work,
    begin_each,
    config_of,
    copy_bandwidth,
    host_batch,
    median,
    rate_of,
    seconds_of,
    upload_bandwidth,
    waits,
)
from benchmarks.gpu.graphs import capture_step
from benchmarks.timing import QUICK, Result, interleave, publish
from benchmarks.two_t4s import TRAFFIC
from claris_kaggle.data.patches import PATCH_BYTES
from claris_kaggle.models.factory import create_model
from claris_kaggle.training.learner import _Learner, _train_step

BATCH, STEPS, ROUNDS = (4, 1, 1) if QUICK else (128, 20, 5)
OURS = "ours, fp16, channels-last"


def new_learner(precision: str, *, compiled: bool = False) -> _Learner:
    """Return a new learner on the device."""
    config = config_of(precision, BATCH)
    return _Learner(config, WORLD, create_model(config.model), compiled=compiled and CUDA)


def our_steps(learner: _Learner) -> Work:
    """Return training steps on a uint8 batch from the host."""
    batch = host_batch(BATCH)

    def work() -> None:
        for _ in range(STEPS):
            _train_step(learner, batch, LR)

    return work


def recorded_steps(learner: _Learner) -> Work:
    """Return the same steps, replayed from a CUDA graph."""
    batch = host_batch(BATCH)
    replay = capture_step(learner, batch, LR)

    def work() -> None:
        for _ in range(STEPS):
            replay(batch)

    return work


def makers() -> dict[str, Callable[[], Contender]]:
    """Return the contenders that need no compilation."""
    images, batch = BATCH * STEPS, peers.float_batch(BATCH)
    skipped = min(4, STEPS - 1)

    def batches() -> list[tuple[peers.Tensor, peers.Tensor]]:
        return [batch] * STEPS

    def steps(work: Callable[[], Work], *, trials: bool = True) -> Callable[[], Contender]:
        return lambda: rate_of(images, work(), trials=trials)

    found = {
        "reference loop, float32": steps(lambda: peers.all_of(peers.reference_loop(batches))),
        "timm's loop, fp16, channels-last": steps(lambda: peers.all_of(peers.timm_loop(batches))),
        OURS: steps(lambda: our_steps(new_learner("fp16"))),
        "ours, bf16": steps(lambda: our_steps(new_learner("bf16"))),
        "ours without cuDNN's trials": steps(lambda: our_steps(new_learner("fp16")), trials=False),
        "ours as a CUDA graph": steps(lambda: recorded_steps(new_learner("fp16"))),
    }
    if peers.has_lightning():
        found["Lightning, 16-mixed"] = lambda: peers.lightning_rate(lambda: [batch] * (STEPS + skipped), skipped)
    return found


def compiled_makers(facts: dict[str, str]) -> dict[str, Callable[[], Contender]]:
    """Return the contenders that need compilation."""

    def compiled() -> Contender:
        work = our_steps(new_learner("fp16", compiled=True))
        facts["first compiled steps, with what an earlier process left in the cache"] = f"{seconds_of(work):.0f} s"
        return rate_of(BATCH * STEPS, work, trials=True)

    return {
        "ours, compiled": compiled,
        "ours, compiled, as a CUDA graph": lambda: rate_of(
            BATCH * STEPS, recorded_steps(new_learner("fp16", compiled=True)), trials=True
        ),
    }


def compare(found: Mapping[str, Callable[[], float]], facts: dict[str, str], bandwidth: float) -> None:
    """Measure the contenders, print the result and write it."""
    rates = interleave(found, rounds=ROUNDS, warm_up=1)
    used = median(rates[OURS]) * TRAFFIC["train"] / bandwidth
    facts[f"share of the card's {bandwidth / 1e9:,.0f} GB/s in a copy"] = f"{used:.0%}"
    publish(Result("gpu_training", f"training DenseNet-121, batch {BATCH}, {CARD}", "images/s", rates, facts))


def main() -> None:
    """Compare without compilation, write the result, and compare again with compiled contenders."""
    bandwidth, upload = copy_bandwidth(), upload_bandwidth()
    facts = {
        "waits for the device in a step": waits(our_steps(new_learner("fp16"))),
        "copy from pinned memory to the card": f"{upload / 1e9:.1f} GB/s, that is "
        f"{upload / PATCH_BYTES:,.0f} patches/s",
        "Lightning": "measured" if peers.has_lightning() else "not installed here",
    }
    found = begin_each(makers(), facts)
    compare(found, facts, bandwidth)
    compare({**found, **begin_each(compiled_makers(facts), facts)}, facts, bandwidth)


if __name__ == "__main__":
    main()
