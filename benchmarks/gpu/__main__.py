"""On a GPU: every section in a process of its own with a time limit, so that none takes another's time.

python -m benchmarks.gpu [--out DIR] [--seconds 330]
python -m benchmarks.gpu --quick    # every section tried with a small network, on a CPU where there is no GPU
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from benchmarks.timing import QUICK, ROOT, option

# Arguments of each section and the seconds that it may take; a section keeps what it has as it goes.
SECTIONS: dict[str, tuple[list[str], float]] = {
    "training": (["training"], 95),
    "inference": (["inference"], 75),
    "loading": (["loading"], 110),
    "training sizes": (["sizes", "training"], 85),
    "inference sizes": (["sizes", "inference"], 50),
}
START_UP = 15.0  # seconds of a section that are not its measurements: imports, the network, the first kernels


def run_section(name: str, limit: float) -> int:
    """Run one section to its end or its limit; returns its exit code, 124 for the limit."""
    module, *arguments = SECTIONS[name][0]
    passed = [one for one in sys.argv[1:] if one == "--quick"]
    passed += ["--out", option("--out", "")] if option("--out", "") else []
    command = [sys.executable, "-m", f"benchmarks.gpu.{module}", *arguments, *passed]
    command += ["--seconds", str(max(1.0, limit - START_UP))]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with its loader processes
        process.wait()
        return 124


def main() -> None:
    """Run all sections; the exit code is 1 if one of them failed."""
    import torch

    if not torch.cuda.is_available() and not QUICK:
        print("no GPU here: nothing was measured", file=sys.stderr)
        raise SystemExit(1)
    ends = time.monotonic() + float(option("--seconds", "330"))
    failed = 0
    for name, (_, limit) in SECTIONS.items():
        began = time.monotonic()
        left = min(limit, ends - began)
        code = run_section(name, left) if left > START_UP else 124
        failed += code != 0
        how = {0: "done", 124: "over its time"}.get(code, f"exit code {code}")
        print(f"section {name}: {how}, {time.monotonic() - began:.0f} s", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
