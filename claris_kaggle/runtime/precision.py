"""Which arithmetic a device computes in: fp32, or fp16 and bf16 under autocast."""

from __future__ import annotations

import torch

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import UsageError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_precision(asked: str, device_type: str) -> str:
    """What `auto` means on the device: fp16 on a GPU, fp32 on a CPU; else what was asked for.

    Raises:
        UsageError: fp16 without a GPU, or bf16 on one that has it not, as the T4.
    """
    if asked == "auto":
        return "fp16" if device_type == "cuda" else "fp32"
    if asked == "fp16" and device_type != "cuda":
        hint = "Give fp32, or bf16 on a processor that has it"
        raise UsageError("--precision is fp16, and there is no GPU here", "", hint)
    if asked == "bf16" and not _has_bf16(device_type):
        raise UsageError("--precision is bf16, which this GPU does not have", "", "Give fp16")
    return asked


def _has_bf16(device_type: str) -> bool:
    """Whether the device computes in bf16 itself; a CPU always can, at some speed."""
    return device_type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def usable_precision(asked: str, own: str, device_type: str) -> str:
    """What was asked for, else a run's own where the device has it, else what `auto` means there."""
    foreign = device_type != "cuda" if own == "fp16" else own == "bf16" and not _has_bf16(device_type)
    return choose_precision(asked or ("auto" if foreign else own), device_type)


def suggest_precision(taken: str, device_type: str) -> None:
    """Say what would be faster than fp32, on a processor that computes in bf16 itself."""
    kinds = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if taken == "fp32" and device_type == "cpu" and any(getattr(torch.cpu, kind, bool)() for kind in kinds):
        log_info("this processor has bf16: --precision bf16 would be 1.5 to 1.9 times as fast (docs/performance.md)")
