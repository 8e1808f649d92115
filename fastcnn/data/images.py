"""One image file to one uint8 array of a fixed size."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._extras import require
from .errors import DataError, UnreadableImage

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = (
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"),
    *(".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)


def is_image_name(name: str) -> bool:
    """Whether a file of this name counts as an image; hidden files don't."""
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def find_images(folder: str | os.PathLike) -> list[Path]:
    """All image files under `folder`, however deep, sorted by path; links are followed, hidden names not."""
    found, seen = [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(here, name) for name in files if is_image_name(name)]
    return sorted(found)


def find_readable_paths(paths: list[str]) -> list[Path]:
    """Files as given and, for each folder, the images under it. Raises `DataError` for a path that isn't
    there."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images = find_images(path)
            if not images:
                raise DataError(f"there are no image files in {path}")
            found += images
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"there is no file or folder {path}")
    return found


def read_image(path: str | os.PathLike, size: int, channels: int | None = None) -> np.ndarray:
    """Decode `path`, turn it upright by its EXIF orientation and resize it (bilinear with antialiasing; the
    aspect ratio is not kept) to a uint8 array of shape (channels, size, size).

    `channels` 1 is grey, 3 is RGB, None is 1 where the picture has no colour and 3 otherwise. Transparent
    parts lie on white. 16-bit pictures are scaled to 8 bits. Raises `UnreadableImage`.
    """
    pil = require("PIL.Image")
    ops = require("PIL.ImageOps")
    try:
        with pil.open(path) as image:
            # JPEG can decode at 1/2, 1/4 or 1/8 of its size, never below twice what is asked for.
            image.draft(None, (2 * size, 2 * size))
            image = _to_grey_or_rgb(pil, ops.exif_transpose(image))
            if channels == 1:
                image = image.convert("L")
            elif channels == 3:
                image = image.convert("RGB")
            pixels = np.asarray(image.resize((size, size), pil.Resampling.BILINEAR))
    except (
        Exception
    ) as error:  # Pillow's decoders let many kinds out: OSError, SyntaxError, struct.error, ...
        raise UnreadableImage(_reason(pil, error)) from error
    if pixels.ndim == 2:
        return pixels[None].copy()
    if channels is None and (pixels == pixels[..., :1]).all():
        return pixels[None, ..., 0].copy()
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def check_header(path: str | os.PathLike) -> None:
    """Raise `UnreadableImage` where the first bytes already show that `path` can't be decoded."""
    pil = require("PIL.Image")
    try:
        with pil.open(path):
            pass
    except Exception as error:  # as above
        raise UnreadableImage(_reason(pil, error)) from error


def _to_grey_or_rgb(pil, image: "Image.Image") -> "Image.Image":
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = pil.new("RGBA", image.size, (255, 255, 255, 255))
        return pil.alpha_composite(white, image).convert("RGB")
    if image.mode in ("L", "RGB"):
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "F" or image.mode.startswith("I"):
        return pil.fromarray(_to_bytes(np.asarray(image)))
    return image.convert("RGB")


def _to_bytes(pixels: np.ndarray) -> np.ndarray:
    """Deep grey pixels to 8 bits by the range that holds them: 0..1 (float), 8, 16 or 32 bits."""
    top = float(np.nanmax(pixels))
    if pixels.dtype == np.uint16:
        scale = 255 / 65535
    elif pixels.dtype.kind == "f" and top <= 1:
        scale = 255.0
    elif top <= 255:
        scale = 1.0
    elif top <= 65535:
        scale = 255 / 65535
    else:
        scale = 255 / top
    return np.rint(np.nan_to_num(pixels.astype(np.float64)) * scale).clip(0, 255).astype(np.uint8)


def _reason(pil, error: Exception) -> str:
    if isinstance(error, pil.UnidentifiedImageError):
        return "not an image, or a damaged one"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
