"""Labelled images: where they come from and how they reach the model in batches."""

import os

from .augment import Augment
from .batches import Batches
from .digits import digits
from .errors import DataError, UnreadableImage
from .folder import MEMORY_LIMIT, Progress, evaluation_folder, image_folder, labelled_folder
from .images import find_readable_paths, read_image
from .sets import ImageSet, LazyImages, Skipped, Splits

__all__ = [
    "Augment",
    "Batches",
    "DataError",
    "ImageSet",
    "LazyImages",
    "Skipped",
    "Splits",
    "UnreadableImage",
    "digits",
    "evaluation_folder",
    "find_readable_paths",
    "image_folder",
    "labelled_folder",
    "load",
    "read_image",
]


def load(
    source: str | os.PathLike,
    *,
    channels: int | None = None,
    image_size: int = 28,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> Splits:
    """The data set that `source` names: "digits", or the path of a folder (`./digits` for one of that
    name)."""
    if source == "digits":
        return digits(channels=channels, image_size=image_size, seed=seed)
    return image_folder(
        source,
        channels=channels,
        image_size=image_size,
        seed=seed,
        memory_limit=memory_limit,
        progress=progress,
    )
