"""What several sub-commands do alike."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..data import Batches, ImageSet, Skipped
from ..models import ModelError, build
from ..training import Run, RunConfig
from .errors import UserError

NAMED_AT_MOST = 20
EVALUATION_BATCH = 256


def find_device(name: str | None) -> torch.device:
    """The device that the user named, or a GPU where there is one. Raises `UserError` for one that isn't."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name!r} is not a device: expected cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {name}: torch sees no GPU here; leave the flag out to train on the CPU"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    elif device.type != "cpu":
        raise UserError(f"--device {name}: expected cpu, cuda or cuda:N")
    return device


def build_model(config: RunConfig) -> nn.Module:
    """The untrained model of a run. Raises `ModelError` where it doesn't take the run's images."""
    data = config.data
    classes = len(data.classes)
    model = build(config.model, num_classes=classes, in_channels=data.channels, image_size=data.image_size)
    shape = (1, data.channels, data.image_size, data.image_size)
    try:
        with torch.no_grad():
            gave = tuple(model.eval()(torch.zeros(shape)).shape)
    except Exception as error:  # a user's code can raise anything
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"the model {config.model} does not take images of shape {shape} ({said}): see --channels and "
            f"--image-size"
        ) from error
    if gave != (1, classes):
        raise ModelError(
            f"the model {config.model} gave shape {gave} for one image, expected one number for each of "
            f"{classes} classes, (1, {classes})"
        )
    return model.train()


def trained_model(run: Run, which: str, device: torch.device) -> nn.Module:
    """The model of a run with its best or last weights, on `device`."""
    model = build_model(run.config)
    run.load_weights(which, model)
    return model.to(device)


def evaluation_batches(
    images: ImageSet, config: RunConfig, device: torch.device, batch_size: int = EVALUATION_BATCH
) -> Batches:
    """`images` in order, normalised as the run's training images."""
    data = config.data
    return Batches(
        images.images, images.labels, batch_size, shuffle=False, mean=data.mean, std=data.std, device=device
    )


def report_skipped(skipped: Sequence[Skipped], base: Path | None = None, run: Run | None = None) -> None:
    """Count and name the unreadable files on stderr: all of them, or the first of many where `run` keeps the
    whole list."""
    if not skipped:
        return
    lines = []
    for item in skipped:
        inside = base is not None and item.path.is_relative_to(base)
        lines.append(f"{item.path.relative_to(base) if inside else item.path}: {item.reason}")
    shown = len(lines)
    if run is not None:
        run.save_skipped(lines)
        shown = NAMED_AT_MOST
    print(f"skipped {count(len(lines), 'unreadable file')}:", file=sys.stderr)
    for line in lines[:shown]:
        print(f"  {line}", file=sys.stderr)
    if len(lines) > shown:
        print(f"  and {len(lines) - shown:,} more: all are in {run.path / 'skipped.txt'}", file=sys.stderr)


def count(number: int, noun: str) -> str:
    """ "1 image", "1,797 images"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"
