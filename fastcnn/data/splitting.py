"""Stratified random splits."""

import math
from collections.abc import Sequence

import numpy as np

from .._extras import require
from .errors import DataError

VALIDATION_FRACTION = 0.1
TEST_FRACTION = 0.2


def split_off(
    labels: Sequence[int], fraction: float, seed: int, classes: Sequence[str], parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (rest, part): `part` is about `fraction` of `labels`, each class in its share, at least as
    many images as there are classes. Deterministic in `seed`.

    Raises `DataError` where a class has fewer images than the `parts` splits that it must appear in.
    """
    model_selection = require("sklearn.model_selection")
    labels = np.asarray(labels)
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if count < parts:
            raise DataError(
                f"class {name!r} has {count} usable {'image' if count == 1 else 'images'}; at least {parts} "
                f"are needed to split it: add images, or give train/, val/ and test/ folders"
            )
    wanted = min(max(math.ceil(fraction * len(labels)), len(classes)), len(labels) - len(classes))
    rest, part = model_selection.train_test_split(
        np.arange(len(labels)), test_size=wanted, random_state=seed, stratify=labels
    )
    return rest, part


def three_way(
    labels: Sequence[int], seed: int, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of train (70 %), validation (10 %) and test (20 %), stratified, disjoint, together all."""
    labels = np.asarray(labels)
    rest, test = split_off(labels, TEST_FRACTION, seed, classes, parts=3)
    share = VALIDATION_FRACTION / (1 - TEST_FRACTION)
    train, validation = split_off(labels[rest], share, seed, classes, parts=2)
    return rest[train], rest[validation], test
