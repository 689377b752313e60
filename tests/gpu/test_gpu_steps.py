"""Test training steps on a GPU: precision, memory format, optimizer, copies, and the state of a checkpoint."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.data.batches import Batch, _Block
from claris_kaggle.models.factory import create_model
from claris_kaggle.runtime.distributed import World
from claris_kaggle.runtime.loading import prefetch_to_device
from claris_kaggle.training import learner as learner_module
from claris_kaggle.training.checkpoint import _serialize
from claris_kaggle.training.learner import _Learner, _train_step

GPU = torch.device("cuda", 0)
ON_GPU, ON_CPU = World(0, 0, 1, GPU), World(0, 0, 1, torch.device("cpu"))
LR = 1e-3


@pytest.fixture(autouse=True)
def repeatable_algorithms() -> Iterator[None]:
    """Let cuDNN use deterministic algorithms and true float32, so that tolerances can be small."""
    cudnn = torch.backends.cudnn
    kept = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, False
    yield
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = kept


def batch_of(size: int = 16, seed: int = 0) -> Batch:
    """Return a batch of bright and dark patches, which a network can separate."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 2
    images = torch.randint(0, 128, (size, 96, 96, 3), generator=generator) + 100 * labels[:, None, None, None]
    draws = torch.randn(size, 6, generator=generator).mul_(0.1)
    return Batch(images.to(torch.uint8), torch.arange(size) % 8, labels, draws, draws, float(size))


def learner_of(precision: str, world: World = ON_GPU, model: str = "tiny", **options: Any) -> _Learner:
    config = TrainConfig(model=model, weights="none", batch_size=16, color=1.0, precision=precision, **options)
    return _Learner(config, world, create_model(model))


def weights_of(learner: _Learner) -> dict[str, Tensor]:
    return {name: value.detach().float().cpu().clone() for name, value in learner.model.named_parameters()}


def assert_same_steps(one: _Learner, other: _Learner, lr: float) -> None:
    """Check that 99 % of the weights agree within a tenth of a step. Rounding decides where the gradient is 0."""
    for name, value in weights_of(one).items():
        apart = (weights_of(other)[name] - value).abs() > lr / 10
        assert float(apart.float().mean()) < 0.01, name


def loss_of(learner: _Learner) -> float:
    return float(learner.loss_sum.item())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_densenet_step_is_the_cpus_but_for_the_precision(precision: str) -> None:
    there, here = (learner_of(one, world, "densenet121") for one, world in ((precision, ON_GPU), ("fp32", ON_CPU)))
    before = weights_of(there)
    _train_step(there, batch_of(), LR)
    _train_step(here, batch_of(), LR)
    moved = [name for name, value in weights_of(there).items() if not torch.equal(value, before[name])]
    # A convolution that a batch norm follows may get no gradient worth a change in 16 bits; all others move.
    assert len(moved) > 0.95 * len(before) and int(there.skipped_steps) == 0
    assert all(value.device == GPU for value in there.model.state_dict().values())
    assert loss_of(there) == pytest.approx(loss_of(here), abs={"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.1}[precision])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_steps_on_a_gpu_learn(precision: str) -> None:
    learner = learner_of(precision)
    losses = []
    for _ in range(40):
        learner.loss_sum.zero_()
        _train_step(learner, batch_of(), 1e-2)
        losses.append(loss_of(learner))
    assert losses[-1] < 0.7 * losses[0] and int(learner.skipped_steps) == 0


def test_only_fp16_has_a_loss_scale() -> None:
    for precision, scale in (("fp16", 2.0**16), ("bf16", 1.0), ("fp32", 1.0)):
        learner = learner_of(precision)
        _train_step(learner, batch_of(), LR)
        assert learner.scaler.get_scale() == scale


def test_a_step_without_a_finite_loss_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, whole = learner_of("fp16"), learner_module._augment_batch

    def spoiled(learner: _Learner, batch: Batch) -> Tensor:
        return whole(learner, batch) * (float("inf") if learner.global_step == 1 else 1)

    monkeypatch.setattr(learner_module, "_augment_batch", spoiled)
    seen = []
    for _ in range(3):
        _train_step(learner, batch_of(), LR)
        learner.check_health()
        seen.append(weights_of(learner))
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    assert not all(torch.equal(seen[1][name], seen[2][name]) for name in seen[0])
    assert int(learner.skipped_steps) == 1 and learner.scaler.get_scale() == 2.0**15
    assert all(bool(torch.isfinite(value).all()) for value in learner.state()["model"].values())


def test_gradients_that_overflow_fp16_halve_the_scale_and_change_no_weight() -> None:
    learner = learner_of("fp16")
    learner.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    before = weights_of(learner)
    _train_step(learner, batch_of(), LR)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(learner).items())
    assert learner.scaler.get_scale() == 2.0**39 and int(learner.skipped_steps) == 0  # the loss itself was finite
    for _ in range(39):
        _train_step(learner, batch_of(), LR)
    assert not all(torch.equal(value, before[name]) for name, value in weights_of(learner).items())


def test_layers_compute_channels_last() -> None:
    learner, seen = learner_of("fp16", model="densenet121"), []
    layers = [layer for layer in learner.model.modules() if isinstance(layer, torch.nn.Conv2d)]
    for layer in layers:
        layer.register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0], layer.weight, output)))
    _train_step(learner, batch_of(), LR)
    assert len(seen) == len(layers) == 120
    assert all(one.is_contiguous(memory_format=torch.channels_last) for tensors in seen for one in tensors)


def test_the_fused_optimizer_updates_as_the_cpus() -> None:
    there, here = (learner_of("fp32", world, weight_decay=0.05) for world in (ON_GPU, ON_CPU))
    assert there.optimizer.defaults["fused"] and not here.optimizer.defaults["fused"]
    for seed in range(5):
        for learner in (there, here):
            generator = torch.Generator().manual_seed(seed)
            for group in learner.optimizer.param_groups:
                group["lr"] = 1e-2
            for value in learner.model.parameters():
                value.grad = torch.empty_like(value).copy_(torch.randn(value.shape, generator=generator))
            learner.optimizer.step()
    for name, value in weights_of(here).items():
        torch.testing.assert_close(weights_of(there)[name], value, rtol=1e-5, atol=1e-6)


def test_blocks_are_copied_on_a_stream_of_their_own_and_arrive_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compute stream is busy, so that the test fails if a block is used before its copy has ended."""
    streams, whole = [], _Block.to

    def seen(block: _Block, device: torch.device) -> _Block:
        streams.append(torch.cuda.current_stream(device))
        return whole(block, device)

    monkeypatch.setattr(_Block, "to", seen)
    images = [torch.full((512, 96, 96, 3), number, dtype=torch.uint8).pin_memory() for number in range(20)]
    work, sums = torch.randn(2048, 2048, device=GPU), []
    for block in prefetch_to_device((_Block(torch.arange(512), one) for one in images), GPU):
        work = (work @ work).clamp(-1, 1)
        sums.append(block.images.sum(dtype=torch.int64))
        del block
    assert [int(one) for one in sums] == [number * images[0].numel() for number in range(20)]
    list(prefetch_to_device([_Block(torch.arange(512), images[0])], GPU))  # as in the next epoch
    assert len(set(streams)) == 1 and streams[0] != torch.cuda.current_stream(GPU)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_step_waits_for_nothing_that_the_device_has_still_to_compute(precision: str) -> None:
    learner = learner_of(precision, stain=0.1)
    loaded = [batch_of(seed=seed).map(torch.Tensor.pin_memory) for seed in range(4)]
    _train_step(learner, loaded[0], LR)  # constants are sent once
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in prefetch_to_device(loaded, GPU):
            _train_step(learner, batch, LR)
        with pytest.raises(RuntimeError, match="synchroniz"):
            learner.loss_sum.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert learner.global_step == 5 and int(learner.skipped_steps) == 0


@pytest.mark.parametrize("model", ["tiny", "densenet121"])
def test_a_checkpoint_of_a_gpu_is_restored_bit_for_bit_and_training_goes_on_the_same(model: str) -> None:
    first = learner_of("fp16", model=model, ema=0.9)
    for seed in range(3):
        _train_step(first, batch_of(seed=seed), LR)
    content = io.BytesIO(bytes(_serialize(first.state())))
    second = learner_of("fp16", model=model, ema=0.9)
    second.restore(torch.load(content, map_location="cpu", weights_only=True))
    for name, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name
    for one, other in zip(first.optimizer.state.values(), second.optimizer.state.values(), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert second.scaler.get_scale() == first.scaler.get_scale() and second.global_step == 3
    for learner in (first, second):
        _train_step(learner, batch_of(seed=3), LR)
    assert_same_steps(first, second, LR)


def test_a_graph_of_a_training_step_takes_the_steps_that_eager_takes() -> None:
    from benchmarks.gpu.graphs import capture_step

    batches = [batch_of(seed=seed).to(GPU) for seed in range(6)]
    eager, captured = (learner_of("fp16") for _ in range(2))
    start = copy.deepcopy(captured.model.state_dict())
    replay = capture_step(captured, batches[0], LR)
    captured.model.load_state_dict(start)  # capturing took steps of its own
    for state in captured.optimizer.state.values():
        for value in state.values():
            value.zero_()
    for batch in batches:
        _train_step(eager, batch, LR)
        replay(batch)
    assert_same_steps(eager, captured, LR)
