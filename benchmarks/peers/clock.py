"""Times of the parts of a peer's script, printed for the benchmark. Lines that use it are not counted."""

from __future__ import annotations

import time

import torch

_began = 0.0


def start() -> None:
    """Start the clock."""
    global _began
    _began = time.perf_counter()


def stop(part: str, images: int) -> None:
    """Print the seconds since the start, for that number of images."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    print(f"measured {part} {images} {time.perf_counter() - _began}", flush=True)
