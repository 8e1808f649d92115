"""The handwritten digits that ship inside scikit-learn."""

import numpy as np
import torch
from torch.nn.functional import interpolate

from .._extras import require
from .errors import DataError
from .sets import ImageSet, Splits
from .splitting import three_way


def digits(*, channels: int | None = None, image_size: int = 28, seed: int = 0) -> Splits:
    """1,797 real handwritten digits, 8x8 with values 0..16, brought to `image_size` by bilinear interpolation
    as uint8, in stratified splits of 70 % train, 10 % validation and 20 % test drawn with `seed`.

    They are grey; `channels=3` repeats them. Raises `MissingExtraError` without scikit-learn.
    """
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels}")
    if image_size < 1:
        raise DataError(f"the image size must be at least 1, got {image_size}")
    raw = require("sklearn.datasets").load_digits()
    small = torch.from_numpy(raw.images.astype(np.float32))[:, None] * (255 / 16)
    big = interpolate(small, (image_size, image_size), mode="bilinear", align_corners=False)
    images = big.round().clamp(0, 255).to(torch.uint8).repeat(1, channels or 1, 1, 1)
    labels = torch.from_numpy(raw.target.astype(np.int64))
    classes = [str(name) for name in raw.target_names]
    everything = ImageSet(images, labels, [str(index) for index in range(len(labels))])
    train, validation, test = three_way(labels.numpy(), seed, classes)
    return Splits(
        name="digits",
        classes=classes,
        channels=images.shape[1],
        image_size=image_size,
        train=everything.select(train),
        validation=everything.select(validation),
        test=everything.select(test),
    )
