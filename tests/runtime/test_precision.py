"""The precision that a device can use."""

from __future__ import annotations

import pytest
import torch

from claris_kaggle.core.errors import UsageError
from claris_kaggle.runtime.precision import choose_precision, usable_precision


def test_a_gpu_without_bf16_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(UsageError, match="bf16, which this GPU does not support"):
        choose_precision("bf16", "cuda")
    assert usable_precision("", "bf16", "cuda") == "fp16"
    assert choose_precision("bf16", "cpu") == "bf16"
