"""`fastcnn eval`."""

import argparse
import json

from .. import data
from .._extras import check_installed
from ..data import ImageSet, Skipped
from ..training import Run, RunConfig, Trainer
from .common import count, evaluation_batches, find_device, report_skipped, trained_model
from .errors import UserError
from .progress import reading_progress, say


def main(arguments: argparse.Namespace) -> int:
    """Print loss and accuracy of a run's weights."""
    check_installed("rich", "safetensors")
    run = Run.open(arguments.run)
    device = find_device(arguments.device)
    model = trained_model(run, arguments.weights, device)
    images, skipped = _images(run, arguments.data, arguments.json)
    batches = evaluation_batches(images, run.config, device, arguments.batch_size)
    loss, accuracy = Trainer(model, device=device).evaluate(batches)
    if arguments.json:
        result = {"loss": loss, "accuracy": accuracy, "images": len(images) - _lost(images)}
        say(json.dumps(result))
    else:
        say(f"loss {loss:.4f}  accuracy {accuracy:.2%}  ({count(len(images) - _lost(images), 'image')})")
    report_skipped(skipped)
    return 0


def _images(run: Run, source: str | None, quiet: bool) -> tuple[ImageSet, list[Skipped]]:
    """The run's own test images, or those of `source`, and what couldn't be read."""
    config = run.config
    with reading_progress(quiet) as progress:
        if source is None or source == "digits":
            return _own_images(run, config, source, progress)
        return data.labelled_folder(
            source,
            config.data.classes,
            channels=config.data.channels,
            image_size=config.data.image_size,
            memory_limit=config.data.memory_limit,
            progress=progress,
        )


def _own_images(
    run: Run, config: RunConfig, source: str | None, progress: data.Progress | None
) -> tuple[ImageSet, list[Skipped]]:
    splits = data.load(
        source or config.data.source,
        channels=config.data.channels,
        image_size=config.data.image_size,
        seed=config.data.seed,
        memory_limit=config.data.memory_limit,
        progress=progress,
    )
    if splits.classes != config.data.classes:
        raise UserError(
            f"{source or config.data.source} has the classes {', '.join(splits.classes)}; "
            f"{run} was trained on {', '.join(config.data.classes)}"
        )
    if source is None and splits.fingerprint() != config.data.fingerprint:
        raise UserError(
            f"the images of {config.data.source} are not those that {run} was trained on: its test images "
            f"can't be told from them; name a folder to evaluate on all its images"
        )
    return splits.test, splits.skipped


def _lost(images: ImageSet) -> int:
    """How many of a lazily decoded set turned out unreadable."""
    if not isinstance(images.images, data.LazyImages):
        return 0
    lost = {item.path for item in images.images.skipped}
    return sum(path in lost for path in images.images.paths)
