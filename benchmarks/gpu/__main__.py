"""Run all GPU benchmarks. Each section runs in its own process with its own time limit.

python -m benchmarks.gpu [--out DIR] [--seconds 330]
python -m benchmarks.gpu --quick    # a short trial of every section with a small network, on a CPU if there is no GPU
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from benchmarks.timing import QUICK, ROOT, option

# Arguments of each section, and its share of the time. The time that a section does not need is left to the others.
# A section saves its results as it runs.
SECTIONS: dict[str, tuple[list[str], float]] = {
    "training": (["training"], 0.3),
    "inference": (["inference"], 0.2),
    "loading": (["loading"], 0.25),
    "training sizes": (["sizes", "training"], 0.15),
    "inference sizes": (["sizes", "inference"], 0.1),
}
START_UP = 15.0  # seconds of a section before its measurements: imports, network, first kernels


def run_section(name: str, limit: float) -> int:
    """Run one section, and return its exit code; 124 if it reached the time limit."""
    module, *arguments = SECTIONS[name][0]
    options = [one for one in sys.argv[1:] if one == "--quick"]
    options += ["--out", option("--out", "")] if option("--out", "") else []
    command = [sys.executable, "-m", f"benchmarks.gpu.{module}", *arguments, *options]
    command += ["--seconds", str(max(1.0, limit - START_UP))]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # includes its loader processes
        process.wait()
        return 124


def main() -> None:
    """Run all sections. The exit code is 1 if a section failed."""
    import torch

    if not torch.cuda.is_available() and not QUICK:
        print("no GPU found, nothing was measured; use --quick for a trial on a CPU", file=sys.stderr)
        raise SystemExit(1)
    end = time.monotonic() + float(option("--seconds", "330"))
    failed, shares = 0, [share for _, share in SECTIONS.values()]
    for index, name in enumerate(SECTIONS):
        began = time.monotonic()
        limit = (end - began) * shares[index] / sum(shares[index:])
        code = run_section(name, limit) if limit > START_UP else 124
        failed += code != 0
        outcome = {0: "done", 124: "time limit reached"}.get(code, f"exit code {code}")
        print(f"section {name}: {outcome}, {time.monotonic() - began:.0f} s", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
