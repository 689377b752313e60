"""Test prediction on a GPU: compared with a CPU, as a CUDA graph, and without enough memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import TrainingError
from claris_kaggle.core.paths import DataDir
from claris_kaggle.data.pack import Pack
from claris_kaggle.data.prepare import get_pack
from claris_kaggle.data.tables import read_labels
from claris_kaggle.inference.forward import _view_logits, predict_ids
from claris_kaggle.models.factory import create_model, fuse_batch_norm
from claris_kaggle.runtime.distributed import World

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
Call = Callable[..., tuple[int, str, str]]
# Largest difference of a probability to float32 on a CPU; a GPU's float32 convolutions are TF32.
TOLERANCE = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 3e-2}


@pytest.fixture
def pack(generated: DataDir, cache: Path) -> Pack:
    ids, _ = read_labels(generated.labels)
    return get_pack(generated, "train", ids, cache, verified=True)


@pytest.fixture
def limit_memory() -> Iterator[Callable[[float], None]]:
    """Yield a function that limits this process to a share of the GPU memory."""

    def limit(share: float) -> None:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share, GPU)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0, GPU)


def network(device: torch.device) -> torch.nn.Module:
    """Return DenseNet-121 as `claris predict` uses it."""
    return fuse_batch_norm(create_model("densenet121").to(device=device, memory_format=torch.channels_last))  # type: ignore[call-overload]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_densenet_predicts_as_on_a_cpu(pack: Pack, precision: str) -> None:
    ids = pack.ids[:40]
    found = [
        predict_ids(network(device), pack, ids, World(0, 0, 1, device), TrainConfig(precision=one), views=4, workers=0)
        for device, one in ((GPU, precision), (CPU, "fp32"))
    ]
    assert np.ptp(found[1]) > 1e-3  # patches are told apart, so that equality means something
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=TOLERANCE[precision])


def test_a_graph_of_the_forward_pass_gives_eager_logits(pack: Pack) -> None:
    from benchmarks.gpu.graphs import capture_forward

    model, config = network(GPU), TrainConfig(precision="fp16")
    first, second = (torch.from_numpy(np.array(pack.pixels[part])).to(GPU) for part in (slice(0, 32), slice(32, 64)))
    with torch.inference_mode():
        replay = capture_forward(lambda images: _view_logits(model, images, config, 8), first)
        for images in (second, first):
            torch.testing.assert_close(
                replay(images).clone(), _view_logits(model, images, config, 8), rtol=0, atol=5e-3
            )
        assert not torch.equal(replay(first).clone(), replay(second).clone())


def test_training_without_enough_memory_says_which_batch_size_to_try(
    call: Call, limit_memory: Callable[[float], None], generated: DataDir, cache: Path, fold_file: Path, tmp_path: Path
) -> None:
    limit_memory(0.006)
    where = ["--data", generated.root, "--cache", cache, "--run", tmp_path / "run", "--folds", fold_file]
    flags = ["--weights", "none", "--batch-size", 160, "--fold", 0, "--nproc", 1, "--workers", 0]
    code, shown, said = call("train", *where, *flags)
    assert (code, shown) == (1, "")
    assert "fold 0: the GPU memory is too small for 160 patches per step" in said
    assert "--batch-size 80 or smaller" in said and "Traceback" not in said


def test_prediction_without_enough_memory_says_what_to_do(pack: Pack, limit_memory: Callable[[float], None]) -> None:
    model = network(GPU)
    limit_memory(1e-6)
    with pytest.raises(TrainingError, match="the GPU memory is too small to predict 512 patches") as caught:
        predict_ids(model, pack, pack.ids, World(0, 0, 1, GPU), TrainConfig(precision="fp16"), views=1)
    assert "nvidia-smi" in caught.value.hint
