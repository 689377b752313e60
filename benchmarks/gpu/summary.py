"""Print a short summary of the results of all sections.

python -m benchmarks.gpu.summary DIR
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from benchmarks.timing import Grid, compute_ratios, format_rate, read_result


def main(folder: Path) -> None:
    """Print a line for each contender or row."""
    for path in sorted(folder.glob("gpu_*.json")):
        result = read_result(path)
        print(f"\n{result.title}")
        if isinstance(result, Grid):
            for row in (result.columns, *result.rows):
                print("  " + " | ".join(row))
        else:
            for name, (_, middle, _) in compute_ratios(result.rates).items():
                print(
                    f"  {format_rate(statistics.median(result.rates[name])):>9} {result.unit}  {middle:5.2f}x  {name}"
                )
        for name, text in result.facts.items():
            print(f"  {name}: {text}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
