"""Print the times of the parts of a script for the benchmark. Lines that use this module are not counted."""

from __future__ import annotations

import time

import torch

_began = 0.0


def start() -> None:
    """Start the clock."""
    global _began
    _began = time.perf_counter()


def stop(part: str, images: int) -> None:
    """Print the part, its number of images and the seconds since the start."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(f"measured {part} {images} {time.perf_counter() - _began}", flush=True)
