"""Shared array types, and the decision threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int8]
Probabilities = NDArray[np.float32]
Columns = NDArray[np.float64]
THRESHOLD = 0.5
Pixels = NDArray[np.uint8]
