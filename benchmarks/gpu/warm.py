"""Fill the compiler cache for the benchmarks while the tests run.

python -m benchmarks.gpu.warm training|inference
"""

from __future__ import annotations

import sys
import time

from benchmarks.gpu import inference, training
from benchmarks.gpu.device import CUDA, measure_seconds


def main(name: str) -> None:
    """Compile the network of one benchmark, and print the time."""
    if not CUDA:
        print("no GPU found, nothing was compiled")
        return
    began = time.perf_counter()
    if name == "training":
        function = training.train_steps(training.new_learner("fp16", compiled=True))
    else:
        function = inference.predict_views(inference.compile_network())
    measure_seconds(function)
    print(f"{name}: compiled in {time.perf_counter() - began:.0f} s while the tests ran", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
