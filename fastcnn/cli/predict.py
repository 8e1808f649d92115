"""`fastcnn predict`."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .._extras import check_installed
from ..data import ImageSet, Skipped, find_readable_paths
from ..data.sets import decode_all
from ..training import Run, Trainer
from .common import evaluation_batches, find_device, report_skipped, trained_model
from .progress import say


def main(arguments: argparse.Namespace) -> int:
    """Print class and probability of every file. Status 1 where no file could be read."""
    check_installed("rich", "safetensors", "PIL")
    run = Run.open(arguments.run)
    paths = find_readable_paths(arguments.files)
    device = find_device(arguments.device)
    model = trained_model(run, arguments.weights, device)
    trainer = Trainer(model, device=device)
    skipped: list[Skipped] = []
    found: list[dict[str, Any]] = []
    width = max(len(str(path)) for path in paths)
    for prediction in _predict(trainer, run, paths, arguments.top_k, arguments.batch_size, skipped):
        found.append(prediction)
        if not arguments.json:
            say(_line(prediction, width))
    if arguments.json:
        say(json.dumps(found, indent=2))
    report_skipped(skipped)
    return 0 if found else 1


def _predict(
    trainer: Trainer, run: Run, paths: list[Path], top_k: int, batch_size: int, skipped: list[Skipped]
) -> Iterator[dict[str, Any]]:
    data = run.config.data
    for start in range(0, len(paths), batch_size):
        part = paths[start : start + batch_size]
        images, kept, unreadable = decode_all(part, data.image_size, data.channels)
        skipped += unreadable
        if not kept:
            continue
        unlabelled = ImageSet(images, torch.zeros(len(kept), dtype=torch.int64), [str(part[i]) for i in kept])
        logits = trainer.predict(evaluation_batches(unlabelled, run.config, trainer.device, batch_size))
        probabilities, labels = logits.softmax(1).topk(min(top_k, len(data.classes)), dim=1)
        for name, values, numbers in zip(
            unlabelled.names, probabilities.tolist(), labels.tolist(), strict=True
        ):
            top = [
                {"class": data.classes[number], "probability": value}
                for number, value in zip(numbers, values, strict=True)
            ]
            record = {"file": name, **top[0]}
            yield record if top_k == 1 else {**record, "top": top}


def _line(prediction: dict[str, Any], width: int) -> str:
    top = prediction.get("top", [prediction])
    guesses = "  ".join(f"{guess['class']} {guess['probability']:.1%}" for guess in top)
    return f"{prediction['file']:<{width}}  {guesses}"
