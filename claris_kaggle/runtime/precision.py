"""Floating-point precision of a device: fp32, or fp16 and bf16 under autocast."""

from __future__ import annotations

import functools

import torch

from claris_kaggle.core.console import log_info
from claris_kaggle.core.errors import UsageError

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which networks compute in this precision, `fp32`, `fp16` or `bf16`, on the device."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


def choose_precision(requested: str, device_type: str) -> str:
    """Return the precision to use. `auto` is fp16 on a GPU and fp32 on a CPU.

    Args:
        requested: `auto`, `fp32`, `fp16` or `bf16`.
        device_type: `cuda` or `cpu`.
    Raises:
        UsageError: fp16 without a GPU, or bf16 on a GPU without native support, such as the T4.
    """
    if requested == "auto":
        return "fp16" if device_type == "cuda" else "fp32"
    if requested == "fp16" and device_type != "cuda":
        hint = "Give fp32, or bf16 on a processor that has it"
        raise UsageError("--precision is fp16, and there is no GPU here", "", hint)
    if requested == "bf16" and not _has_bf16(device_type):
        raise UsageError("--precision is bf16, which this GPU does not support", "", "Give fp16")
    return requested


def _has_bf16(device_type: str) -> bool:
    """Return True if the device supports bf16 natively. Every CPU counts as supported, though some are slow."""
    return device_type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def usable_precision(requested: str, trained: str, device_type: str) -> str:
    """Return the precision to predict with on this device.

    Args:
        requested: explicit choice; empty uses the precision of the run.
        trained: precision that the run was trained with. `auto` replaces it where the device does not support it.
        device_type: `cuda` or `cpu`.
    Raises:
        UsageError: the device does not support the explicit choice.
    """
    unsupported = device_type != "cuda" if trained == "fp16" else trained == "bf16" and not _has_bf16(device_type)
    return choose_precision(requested or ("auto" if unsupported else trained), device_type)


def suggest_precision(precision: str, device_type: str, model: str) -> None:
    """Log a suggestion, once per process, to use bf16 if the CPU supports it natively and the precision is fp32.

    Args:
        precision: the precision in use.
        device_type: `cpu` or `cuda`.
        model: name of the network; `tiny` is too small to gain.
    """
    if precision == "fp32" and device_type == "cpu" and model != "tiny":
        _suggest_bf16()


@functools.cache
def _suggest_bf16() -> None:
    """Log the suggestion if the CPU supports bf16 natively."""
    kinds = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if any(getattr(torch.cpu, kind, bool)() for kind in kinds):
        log_info("this processor has bf16: --precision bf16 would be 1.5 to 1.9 times as fast (docs/performance.md)")
