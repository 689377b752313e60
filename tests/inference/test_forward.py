"""Test the forward pass of prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from claris_kaggle.core.config import TrainConfig
from claris_kaggle.core.errors import TrainingError
from claris_kaggle.data.pack import Pack
from claris_kaggle.inference.forward import predict_ids
from claris_kaggle.models.factory import create_model
from tests.support.learners import ALONE


def test_prediction_without_enough_gpu_memory_says_what_to_do(tmp_path: Path) -> None:
    """tests/gpu fills a real GPU, whose blocks have 512 patches."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    model, pack = create_model("tiny"), Pack(["0" * 40], np.zeros((1, 96, 96, 3), np.uint8), tmp_path)
    model.register_forward_pre_hook(fail)
    with pytest.raises(TrainingError, match="the GPU memory is too small to predict 32 patches") as caught:
        predict_ids(model, pack, pack.ids, ALONE, TrainConfig(precision="fp32"), views=1)
    assert "nvidia-smi" in caught.value.hint
