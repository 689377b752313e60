"""Write the table of `claris models`: weights, GFLOP by input size, and the settings of the published weights.

python -m benchmarks.networks
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from claris_kaggle.core.files import write_text
from claris_kaggle.models.catalogue import _SUITABLE, _TABLE, _count_network

SIDES = (96, 128, 160, 192, 224, 256, 320, 384)
DEFAULT_SIDE = 192  # of `claris models`


def count_row(name: str, sides: Sequence[int]) -> dict[str, str]:
    """Return the row of a network that accepts all these sizes. The number of weights is that at the default size."""
    counts, default = [_count_network(name, side) for side in sides], _count_network(name, DEFAULT_SIDE)
    row = {"network": name, "million_parameters": f"{default.million_parameters:.2f}"}
    row |= {str(side): f"{one.gflop:.3f}" for side, one in zip(sides, counts, strict=True)}
    return {**row, "normalisation": default.normalisation, "weights": default.weights}


if __name__ == "__main__":
    rows = [count_row(name, SIDES) for name in _SUITABLE]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(_TABLE, text.getvalue())
