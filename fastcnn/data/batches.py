"""The loader: shuffled, normalised batches on the training device, restorable at any batch."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .augment import Augment
from .sets import LazyImages, Skipped

_PREFETCH = 3


class Batches:
    """Batches (x, y) of a labelled set, for training and evaluation.

    `images` is a tensor or array of shape (N, ...), or `LazyImages`; `labels` integers of shape (N,). A set
    in memory lies on `device` as it is (uint8 stays uint8) and a batch is picked there by index; a lazy one
    is decoded by `threads` threads, a few batches ahead. `x` is floating point: with `mean` and `std` (one
    per channel, in the units of `images`) it is (x - mean) / std, without them uint8 is divided by 255 and
    anything else is left as it is. `augment` changes x, of shape (N, C, H, W), at random. `y` is int64. The
    last batch of an epoch may be smaller.

    Iterating gives the batches that are left of the current epoch and moves on to the next. With `shuffle`,
    the order of epoch e depends on (`seed`, e) alone, and so does what `augment` draws for its batch b on
    (`seed`, e, b): `state_dict()`, which is where the loader stands, is enough to go on with exactly the
    batches that would have come.

    Raises ValueError for an empty set, unequal lengths or a batch size below 1.
    """

    def __init__(
        self,
        images: Tensor | np.ndarray | LazyImages,
        labels: Tensor | np.ndarray | Sequence[int],
        batch_size: int = 32,
        *,
        shuffle: bool = True,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        augment: Augment | None = None,
        device: str | torch.device = "cpu",
        threads: int | None = None,
    ) -> None:
        labels = torch.as_tensor(labels)
        if labels.is_floating_point() or labels.dim() != 1:
            raise TypeError(
                f"labels must be integer class numbers of shape (N,), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        if len(images) != len(labels):
            raise ValueError(f"there are {len(images)} images and {len(labels)} labels: expected as many")
        if not len(labels):
            raise ValueError("the set is empty: expected at least one image")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if (mean is None) != (std is None):
            raise ValueError("give both mean and std, or neither")
        self.device = torch.device(device)
        self.images = images if isinstance(images, LazyImages) else torch.as_tensor(images).to(self.device)
        self.labels = labels.to(self.device, torch.int64)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.augment = augment
        self.threads = threads or min(8, os.cpu_count() or 1)
        self.epoch = 0
        self.position = 0
        self._shift, self._scale = self._normalisation(mean, std)

    def _normalisation(
        self, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if mean is None or std is None:
            if isinstance(self.images, LazyImages) or self.images.dtype == torch.uint8:
                return None, torch.tensor(1 / 255, device=self.device)
            return None, None
        shape = (-1, 1, 1)
        scale = 1 / torch.tensor(std, dtype=torch.float64).view(shape)
        shift = -torch.tensor(mean, dtype=torch.float64).view(shape) * scale
        return shift.to(self.device, torch.float32), scale.to(self.device, torch.float32)

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.labels) // self.batch_size)

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands; plain integers."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "length": len(self.labels),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from where `state` was taken. Raises ValueError where that was another set or batch size."""
        for name, own in (("length", len(self.labels)), ("batch_size", self.batch_size)):
            if state[name] != own:
                raise ValueError(f"the saved loader had {name} {state[name]}, this one has {own}")
        self.epoch, self.position, self.seed = state["epoch"], state["position"], state["seed"]

    def order(self, epoch: int) -> Tensor:
        """The order of the images in `epoch`, int64 (N,) on the CPU."""
        if not self.shuffle:
            return torch.arange(len(self.labels))
        return torch.randperm(len(self.labels), generator=_generator(self.seed, epoch))

    def whole_pass(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, for evaluation: in the set's own order and not augmented, wherever the loader
        stands, which stays as it is."""
        for x, y in self._raw_batches(torch.arange(len(self.labels)), 0):
            if len(y):
                yield self._normalise(x), y

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self._raw_batches(self.order(self.epoch), self.position):
            epoch, position = self.epoch, self.position
            # Counted before the batch is given out: whoever has it has used it up.
            self.position += 1
            if self.position == len(self):
                self.epoch, self.position = self.epoch + 1, 0
            if len(y):
                x = self._normalise(x)
                if self.augment is not None:
                    x = self.augment(x, _generator(self.seed, epoch, position))
                yield x, y

    def _normalise(self, x: Tensor) -> Tensor:
        if self._scale is None:
            return x if x.is_floating_point() else x.float()
        x = x.float().mul_(self._scale) if x.dtype != torch.float32 else x * self._scale
        return x if self._shift is None else x.add_(self._shift)

    def _raw_batches(self, order: Tensor, position: int) -> Iterator[tuple[Tensor, Tensor]]:
        starts = range(position * self.batch_size, len(order), self.batch_size)
        if isinstance(self.images, LazyImages):
            return self._lazy_batches(order, starts)
        return self._batches(order.to(self.device), starts)

    def _batches(self, order: Tensor, starts: range) -> Iterator[tuple[Tensor, Tensor]]:
        for start in starts:
            index = order[start : start + self.batch_size]
            yield self.images.index_select(0, index), self.labels.index_select(0, index)

    def _lazy_batches(self, order: Tensor, starts: range) -> Iterator[tuple[Tensor, Tensor]]:
        lazy = self.images
        left = iter(starts)
        waiting: deque[tuple[Tensor, list[Future]]] = deque()
        with ThreadPoolExecutor(self.threads) as pool:

            def submit_next() -> None:
                start = next(left, None)
                if start is not None:
                    index = order[start : start + self.batch_size]
                    waiting.append((index, [pool.submit(lazy.decode, i) for i in index.tolist()]))

            try:
                for _ in range(_PREFETCH):
                    submit_next()
                while waiting:
                    index, futures = waiting.popleft()
                    submit_next()
                    yield self._collect(index, [future.result() for future in futures])
            finally:
                for _, futures in waiting:
                    for future in futures:
                        future.cancel()

    def _collect(self, index: Tensor, decoded: list[np.ndarray | Skipped]) -> tuple[Tensor, Tensor]:
        lazy = self.images
        arrays, kept = [], []
        for position, item in enumerate(decoded):
            if isinstance(item, Skipped):
                lazy.note(item)
            else:
                arrays.append(item)
                kept.append(position)
        x = torch.from_numpy(
            np.stack(arrays) if arrays else np.empty((0, lazy.channels, lazy.size, lazy.size), np.uint8)
        )
        if self.device.type == "cuda":
            x = x.pin_memory()
        index = index[kept].to(self.device)
        return x.to(self.device, non_blocking=True), self.labels.index_select(0, index)


def _generator(*numbers: int) -> torch.Generator:
    """A generator of its own for these numbers; neighbouring ones give unrelated streams."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) & (2**63 - 1))
