"""How many threads training on the CPU takes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..training import RunConfig

SMALL_STEP = 1 << 18
"""Steps over fewer pixels than this run on one thread: 64 images of 64x64."""


@contextmanager
def suitable_threads(config: RunConfig, device: torch.device) -> Iterator[None]:
    """While this lasts, one thread where the steps on the CPU are small and OMP_NUM_THREADS says nothing.

    OpenMP's threads wait for each other busily. Small steps gain little from several, and lose many times
    that where other programs take a core away, since then all wait for the one that was held up.
    """
    pixels = config.training.batch_size * config.data.image_size**2
    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ or pixels >= SMALL_STEP:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
