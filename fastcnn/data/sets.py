"""What a set of labelled images is, in memory or on disk."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, UnreadableImage
from .images import read_image

SAMPLE = 2048
"""How many images speak for a set that is too large to be read whole."""


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: Path
    reason: str


@dataclass
class LazyImages:
    """Images that stay on disk and are decoded when a batch asks for them.

    A file that turns out unreadable is left out of its batch and added to `skipped`.
    """

    paths: Sequence[Path]
    channels: int
    size: int
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    def decode(self, index: int) -> np.ndarray | Skipped:
        """The image as uint8 (channels, size, size), or why there is none. Safe to call from threads."""
        return _decode(self.paths[index], self.size, self.channels)

    def note(self, skipped: Skipped) -> None:
        """Remember an unreadable file, once however many epochs meet it."""
        if skipped not in self.skipped:
            self.skipped.append(skipped)


@dataclass
class ImageSet:
    """Labelled images: `images` uint8 (N, C, H, W) or `LazyImages`, `labels` int64 (N,), `names` (N,)."""

    images: Tensor | LazyImages
    labels: Tensor
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def readable(self) -> int:
        """How many images there are, without the files that turned out unreadable when a batch asked for
        them."""
        if not isinstance(self.images, LazyImages):
            return len(self)
        lost = {item.path for item in self.images.skipped}
        return sum(path not in lost for path in self.images.paths)

    def select(self, indices: Sequence[int]) -> "ImageSet":
        """The images at `indices`, in that order."""
        index = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        if isinstance(self.images, LazyImages):
            lazy = self.images
            paths = [lazy.paths[i] for i in index.tolist()]
            images: Tensor | LazyImages = LazyImages(paths, lazy.channels, lazy.size, lazy.skipped)
        else:
            images = self.images.index_select(0, index)
        names = [self.names[i] for i in index.tolist()]
        return ImageSet(images, self.labels.index_select(0, index), names)


@dataclass
class Splits:
    """A data set ready for training: three sets, what they show, and which files had to be left out."""

    name: str
    classes: list[str]
    channels: int
    image_size: int
    train: ImageSet
    validation: ImageSet
    test: ImageSet
    skipped: list[Skipped] = field(default_factory=list)
    root: Path | None = None

    def fingerprint(self) -> str:
        """A hash of which image is in which split under which label; equal iff the splits are the same."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            digest.update(b"split")
            for name, label in zip(split.names, split.labels.tolist(), strict=True):
                digest.update(f"{label} {name}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()[:32]

    def statistics(self, seed: int = 0) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel of the training split, in units of 0..255 (a seeded sample
        of `SAMPLE` images where it is too large for memory)."""
        images = self.train.images
        if isinstance(images, LazyImages):
            images, _, _ = decode_all(sample(images.paths, seed), self.image_size, self.channels)
        return channel_statistics(images)


def sample(paths: Sequence[Path], seed: int) -> list[Path]:
    """At most `SAMPLE` of `paths`, drawn without replacement with `seed`, in their order."""
    if len(paths) <= SAMPLE:
        return list(paths)
    chosen = np.random.default_rng(seed).choice(len(paths), SAMPLE, replace=False)
    return [paths[i] for i in np.sort(chosen)]


def _decode(path: Path, size: int, channels: int | None) -> np.ndarray | Skipped:
    try:
        return read_image(path, size, channels)
    except UnreadableImage as error:
        return Skipped(path, str(error))


def decode_all(
    paths: Sequence[Path],
    size: int,
    channels: int | None,
    on_image: Callable[[], None] = lambda: None,
    threads: int = 4,
) -> tuple[Tensor, list[int], list[Skipped]]:
    """Decode `paths` on a thread pool: uint8 images (n, C, size, size), their positions in `paths`, and what
    was skipped. With `channels` None, C is 1 if every image is grey and 3 otherwise."""
    arrays, kept, skipped = [], [], []
    for position, result in enumerate(
        ordered_map(lambda path: _decode(path, size, channels), paths, threads)
    ):
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            arrays.append(result)
            kept.append(position)
        on_image()
    if not arrays:
        return torch.empty(0, channels or 1, size, size, dtype=torch.uint8), kept, skipped
    depth = max(array.shape[0] for array in arrays)
    images = np.empty((len(arrays), depth, size, size), np.uint8)
    for target, array in zip(images, arrays, strict=True):
        target[:] = array
    return torch.from_numpy(images), kept, skipped


def ordered_map(function: Callable, items: Sequence, threads: int, ahead: int = 64) -> Iterable:
    """`map` on a thread pool with at most `ahead` results waiting, so that memory stays bounded."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: list = []
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W), in units of 0..255. Computed from
    exact histograms, so they don't depend on order or threads. A constant channel has deviation 1."""
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise TypeError(
            f"images must be uint8 of shape (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )
    if images.numel() == 0:
        raise DataError("there are no images to take a mean of")
    levels = np.arange(256, dtype=np.float64)
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.bincount(images[:, channel].reshape(-1).numpy(), minlength=256).astype(np.float64)
        mean = float((counts * levels).sum() / counts.sum())
        variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
        means.append(mean)
        deviations.append(variance**0.5 or 1.0)
    return means, deviations
