"""For tests of kernels: a float64 reference, and what counts as equal to it."""

from fastcnn.testing.reference import Evaluation, evaluate, in_float64
from fastcnn.testing.tolerances import assert_accurate, assert_exact, ulp

__all__ = ["Evaluation", "assert_accurate", "assert_exact", "evaluate", "in_float64", "ulp"]
