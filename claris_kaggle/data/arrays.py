"""Shared array types, and the decision threshold."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int8]
# float32 in files of this package; float64 where another tool wrote values that float32 cannot tell apart.
Probabilities = NDArray[np.floating]
Columns = NDArray[np.float64]
THRESHOLD = 0.5
Pixels = NDArray[np.uint8]
