"""Fill the compiler's cache for the benchmarks while the tests run.

python -m benchmarks.gpu.warm training|inference
"""

from __future__ import annotations

import sys
import time

from benchmarks.gpu import inference, training
from benchmarks.gpu.card import CUDA, seconds_of


def main(name: str) -> None:
    """Compile the network of one benchmark, and print the duration."""
    if not CUDA:
        print("no GPU here: nothing was compiled")
        return
    began = time.perf_counter()
    if name == "training":
        work = training.our_steps(training.new_learner("fp16", compiled=True))
    else:
        work = inference.our_views(inference.compiled_model())
    seconds_of(work)
    print(f"{name}: compiled in {time.perf_counter() - began:.0f} s, other work beside it", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
