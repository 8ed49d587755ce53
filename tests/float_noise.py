"""How far apart right answers in float32 may lie: the tolerances of tests that compare them.

Every operation rounds its result by up to ``UNIT`` = 2⁻²⁴ of it. Which way depends on the order in
which a sum is taken, on whether products and sums are fused and on what shares a batch: AVX2,
AVX-512 and Arm, oneDNN and OpenBLAS, one row and eight differ. So two right computations differ,
and by how much is no property of the code that one machine could tell. It is one of the
computation, and there are two ways to know it:

- Few operations: the errors of a sum of n terms add up like a random walk, to about √n times
  ``UNIT`` of what is summed. :func:`rounding` gives ``MARGIN`` times that.
- A whole network: nobody knows, but it can be measured, since float64 is exact beside float32.
  :func:`of` gives ``MARGIN`` times the distance of one float32 answer from the float64 one.

``MARGIN`` is for noise that is drawn again on another machine, and looked at where it is largest:
answers of one network were seen to lie 3.4 times as far from the exact one with AVX2 as stored ones
did (LASS-Net), of others up to 2.3 times. A wrong coefficient is thousands of times off.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from torch import Tensor

UNIT = 2.0**-24
MARGIN = 10.0

Values = Tensor | npt.NDArray[np.floating] | float


def of(noise: float) -> float:
    """What two answers may differ by, of which one is so far from what float64 gives."""
    return MARGIN * noise


def rounding(values: Values, terms: int) -> float:
    """What results of few operations may differ by.

    Args:
        values: what is computed, or the largest of what is summed on the way to it.
        terms: of the longest sum; of sums that follow each other, all together.
    """
    return of(UNIT * math.sqrt(terms) * distance(values, 0.0))


def distance(one: Values, other: Values) -> float:
    """The largest difference."""
    return float(np.abs(_array(one) - _array(other)).max(initial=0.0))


def _array(values: Values) -> npt.NDArray[np.float64]:
    return np.asarray(values.detach() if isinstance(values, Tensor) else values, dtype=np.float64)
