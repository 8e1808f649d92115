"""Folders of images: one sub-folder per class, or train/, val/ and test/ above them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .._extras import check_installed
from .errors import DataError, UnreadableImage
from .images import check_header, find_images, is_image_name
from .sets import ImageSet, LazyImages, Skipped, Splits, decode_all, ordered_map, sample
from .splitting import VALIDATION_FRACTION, split_off, three_way

MEMORY_LIMIT = 2 << 30
"""Sets of at most this many bytes are decoded once and kept in memory."""

SPLIT_NAMES = {"train": ("train",), "validation": ("val", "validation", "valid"), "test": ("test",)}

Progress = Callable[[int, int], None]


@dataclass
class _Files:
    """Image files with their class names, before anything is decoded."""

    paths: list[Path] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def classes(self) -> list[str]:
        return sorted(set(self.labels))


def image_folder(
    folder: str | os.PathLike,
    *,
    channels: int | None = None,
    image_size: int = 28,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Splits:
    """The labelled images under `folder`: one sub-folder per class, or `train`, `val` (`validation`, `valid`)
    and `test` above them; a missing validation or test set is split off the training images, stratified by
    class, with `seed`.

    Images of any size come to (channels, image_size, image_size) uint8. `channels` None means 1 where every
    picture is grey and 3 otherwise. Up to `memory_limit` bytes, counted in colour, are decoded at
    once and kept; a larger set is decoded batch by batch, and its channels come from a sample. Unreadable
    files land in `Splits.skipped`, files that aren't images are ignored. `progress(done, total)` is called
    per file.

    Raises `DataError` for a folder that isn't there, holds nothing usable or only one class.
    """
    check_installed("PIL", "sklearn")
    _check_sizes(channels, image_size)
    root = _existing_folder(folder)
    files = _scan_splits(root)
    classes = files["train"].classes()
    for split, found in files.items():
        strange = sorted(set(found.labels) - set(classes))
        if strange:
            raise DataError(
                f"{root}: the {split} images have a class {strange[0]!r} that the training images lack"
            )
    if len(classes) < 2:
        raise DataError(
            f"{root} has only one class, {classes[0]!r}: a classifier needs at least two sub-folders"
        )

    together = _Files()
    bounds = {}
    for split, found in files.items():
        bounds[split] = len(together.paths)
        together.paths += found.paths
        together.labels += found.labels
    everything, origin, channels, skipped = _load(
        root, together, classes, channels, image_size, seed, memory_limit, threads, progress
    )
    owner = np.searchsorted(np.fromiter(bounds.values(), np.int64), origin, side="right") - 1
    parts = {split: np.flatnonzero(owner == number) for number, split in enumerate(bounds)}
    _check_classes(everything.labels.numpy()[parts["train"]], classes)
    parts = _fill_missing_splits(parts, everything.labels.numpy(), classes, seed)
    return Splits(
        name=root.name or "images",
        classes=classes,
        channels=channels,
        image_size=image_size,
        train=everything.select(parts["train"]),
        validation=everything.select(parts["validation"]),
        test=everything.select(parts["test"]),
        skipped=skipped,
        root=root,
    )


def labelled_folder(
    folder: str | os.PathLike,
    classes: Sequence[str],
    *,
    channels: int,
    image_size: int,
    memory_limit: int = MEMORY_LIMIT,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[ImageSet, list[Skipped]]:
    """All images under `folder` with the labels of a trained model's `classes`, to evaluate it on: one
    sub-folder per class, as in `evaluation_folder(folder)`.

    Raises `DataError` for a sub-folder whose name isn't one of `classes`.
    """
    check_installed("PIL")
    _check_sizes(channels, image_size)
    root = evaluation_folder(folder)
    files = _scan_classes(root)
    strange = sorted(set(files.labels) - set(classes))
    if strange:
        raise DataError(
            f"{root} has a class {strange[0]!r} that the model was not trained on; "
            f"its classes are: {', '.join(classes)}"
        )
    images, _, _, skipped = _load(
        root, files, classes, channels, image_size, 0, memory_limit, threads, progress
    )
    return images, skipped


def evaluation_folder(folder: str | os.PathLike) -> Path:
    """Where the images to evaluate on lie: `folder` itself, or its `test` (else `val`, else `train`) where it
    has splits. Raises `DataError` for a folder that isn't there."""
    root = _existing_folder(folder)
    splits = _split_folders(root)
    return splits.get("test") or splits.get("validation") or splits.get("train") or root


def _check_sizes(channels: int | None, image_size: int) -> None:
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 or 3, got {channels}")
    if image_size < 1:
        raise DataError(f"the image size must be at least 1, got {image_size}")


def _existing_folder(folder: str | os.PathLike) -> Path:
    root = Path(folder).expanduser()
    if not root.exists():
        raise DataError(f"there is no folder {root}")
    if not root.is_dir():
        raise DataError(f"{root} is a file, expected a folder with one sub-folder per class")
    return root.resolve()


def _sub_folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits, or nothing where the sub-folders of `root` are classes. A class may itself
    be called "train": it then holds images, not folders."""
    found = {}
    for folder in _sub_folders(root):
        for split, names in SPLIT_NAMES.items():
            if folder.name.lower() in names and _sub_folders(folder):
                if split in found:
                    raise DataError(f"{root} has both {found[split].name}/ and {folder.name}/: remove one")
                found[split] = folder
    return found if "train" in found else {}


def _scan_splits(root: Path) -> dict[str, _Files]:
    folders = _split_folders(root)
    if not folders:
        return {"train": _scan_classes(root)}
    return {split: _scan_classes(folders[split]) for split in SPLIT_NAMES if split in folders}


def _scan_classes(folder: Path) -> _Files:
    files = _Files()
    for sub in _sub_folders(folder):
        images = find_images(sub)
        files.paths += images
        files.labels += [sub.name] * len(images)
    if not files.paths:
        loose = any(is_image_name(entry.name) for entry in folder.iterdir())
        found = "its images lie in no sub-folder" if loose else "no image files in its sub-folders"
        raise DataError(f"{folder} has nothing usable: {found}; expected one sub-folder of images per class")
    return files


def _load(
    root: Path,
    files: _Files,
    classes: Sequence[str],
    channels: int | None,
    size: int,
    seed: int,
    memory_limit: int,
    threads: int | None,
    progress: Progress | None,
) -> tuple[ImageSet, np.ndarray, int, list[Skipped]]:
    """The readable ones of `files`, their positions in it, their channels, and the skipped ones."""
    threads = threads or min(8, os.cpu_count() or 1)
    total = len(files.paths)
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    images: torch.Tensor | LazyImages
    # As if in colour, also where it is known that they aren't: a run's images must be as lazy when it is
    # resumed as when their channels were yet to be found, or else other files are skipped.
    if total * 3 * size * size <= memory_limit:
        images, kept, skipped = decode_all(files.paths, size, channels, count, threads)
        channels = images.shape[1]
    else:
        kept, skipped = _check_headers(files.paths, count, threads)
        paths = [files.paths[i] for i in kept]
        if channels is None:
            looked_at, _, _ = decode_all(sample(paths, seed), size, None, threads=threads)
            channels = looked_at.shape[1]
        images = LazyImages(paths, channels, size, skipped)
    if not kept:
        raise DataError(
            f"{root} has nothing usable: none of its {total} image files can be read "
            f"({skipped[0].path.name}: {skipped[0].reason})"
        )
    number = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([number[files.labels[i]] for i in kept], dtype=torch.int64)
    names = [os.path.relpath(files.paths[i], root) for i in kept]
    return ImageSet(images, labels, names), np.asarray(kept), channels, skipped


def _check_headers(
    paths: Sequence[Path], count: Callable[[], None], threads: int
) -> tuple[list[int], list[Skipped]]:
    def check(path: Path) -> Skipped | None:
        try:
            check_header(path)
        except UnreadableImage as error:
            return Skipped(path, str(error))
        return None

    kept, skipped = [], []
    for position, problem in enumerate(ordered_map(check, paths, threads)):
        if problem is None:
            kept.append(position)
        else:
            skipped.append(problem)
        count()
    return kept, skipped


def _check_classes(labels: np.ndarray, classes: Sequence[str]) -> None:
    for name, count in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True):
        if not count:
            raise DataError(f"class {name!r} has no readable training image")


def _fill_missing_splits(
    parts: dict[str, np.ndarray], labels: np.ndarray, classes: Sequence[str], seed: int
) -> dict[str, np.ndarray]:
    """Split validation and test off the training positions where the folder brings none of its own."""
    train = parts["train"]
    missing = [split for split in ("validation", "test") if not len(parts.get(split, ()))]
    if not missing:
        return parts
    if len(missing) == 2:
        cut = three_way(labels[train], seed, classes)
        return dict(zip(("train", "validation", "test"), (train[part] for part in cut), strict=True))
    rest, part = split_off(labels[train], VALIDATION_FRACTION, seed, classes, parts=2)
    return {**parts, "train": train[rest], missing[0]: train[part]}
