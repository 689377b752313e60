"""Test the choice of the precision for a device."""

from __future__ import annotations

import pytest
import torch

from claris_kaggle.core.errors import UsageError
from claris_kaggle.runtime import precision
from claris_kaggle.runtime.precision import choose_precision, suggest_precision, usable_precision


def test_bf16_is_suggested_once_and_not_for_the_tiny_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    precision._suggest_bf16.cache_clear()
    suggest_precision("fp32", "cpu", "tiny")
    assert capsys.readouterr().err == ""
    for _ in range(2):
        suggest_precision("fp32", "cpu", "densenet121")
    assert capsys.readouterr().err.count("--precision bf16") == 1
    precision._suggest_bf16.cache_clear()


def test_a_gpu_without_bf16_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(UsageError, match="bf16, which this GPU does not support"):
        choose_precision("bf16", "cuda")
    assert usable_precision("", "bf16", "cuda") == "fp16"
    assert choose_precision("bf16", "cpu") == "bf16"
