"""Count the table of `claris models`: weights, GFLOP by input size, and the settings of the published weights.

python -m benchmarks.networks
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from claris_kaggle.core.files import write_text
from claris_kaggle.models.catalogue import _SUITABLE, _TABLE, _count_network

SIDES = (96, 128, 160, 192, 224, 256, 320, 384)
USUAL = 192  # the default of the command


def count_row(name: str, sides: Sequence[int]) -> dict[str, str]:
    """Return the row of a network. All these input sizes must be accepted. A transformer has more weights at others."""
    facts, usual = [_count_network(name, side) for side in sides], _count_network(name, USUAL)
    row = {"network": name, "million_parameters": f"{usual.million_parameters:.2f}"}
    row |= {str(side): f"{one.gflop:.3f}" for side, one in zip(sides, facts, strict=True)}
    return {**row, "normalisation": usual.normalisation, "weights": usual.weights}


if __name__ == "__main__":
    rows = [count_row(name, SIDES) for name in _SUITABLE]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(_TABLE, text.getvalue())
