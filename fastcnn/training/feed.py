"""One shape for whatever training or evaluation data the user has."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import Batches


def is_array(value: Any) -> bool:
    """Whether `value` is one tensor or NumPy array."""
    return isinstance(value, (Tensor, np.ndarray))


def as_batches(data: Any, batch_size: int, *, shuffle: bool, seed: int, device: torch.device) -> Iterable:
    """`data` as something that gives (x, y) batches: a pair of tensors or arrays (the labels may be a list)
    becomes `Batches`, anything else must be iterable already."""
    if (
        isinstance(data, (tuple, list))
        and len(data) == 2
        and is_array(data[0])
        and (is_array(data[1]) or isinstance(data[1], (tuple, list)))
    ):
        return Batches(*data, batch_size=batch_size, shuffle=shuffle, seed=seed, device=device)
    if is_array(data) or isinstance(data, (str, bytes, dict)) or not hasattr(data, "__iter__"):
        raise TypeError(
            f"data must be a pair (x, y) of tensors or arrays, or an iterable of such batches (Batches, "
            f"DataLoader, ...), got {type(data).__name__}"
        )
    return data


def one_pass(data: Iterable) -> Iterable:
    """One pass over all of `data`, also where `Batches` are part-way through an epoch."""
    return data.whole_pass() if isinstance(data, Batches) else data


def to_input(x: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`x` on `device` in the floating point `dtype`: uint8 becomes 0..1."""
    x = torch.as_tensor(x).to(device, non_blocking=True)
    if x.dtype == torch.uint8:
        return x.to(dtype).div_(255)
    return x.to(dtype)


def to_pair(batch: Any, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A batch (x, y) on `device`: x in the floating point `dtype`, y int64 class numbers (N,)."""
    try:
        x, y = batch
    except (TypeError, ValueError):
        raise TypeError(f"a batch must be a pair (x, y), got {type(batch).__name__}") from None
    y = torch.as_tensor(y)
    if y.is_floating_point() or y.is_complex() or y.dim() != 1:
        raise TypeError(
            f"labels must be integer class numbers of shape (N,), got {y.dtype} of shape {tuple(y.shape)} "
            f"(one-hot labels: give y.argmax(1))"
        )
    return to_input(x, device, dtype), y.to(device, torch.int64, non_blocking=True)


def length_of(data: Iterable) -> int | None:
    """Batches in one pass over `data`, None where it can't tell."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return None


class Feed:
    """Batches for as many steps as asked, starting over whenever `data` ends, going on where it stood."""

    def __init__(self, data: Iterable) -> None:
        self.data = data
        self.length = length_of(data)
        self._iterator: Iterator | None = None

    def take(self, steps: int | None, already: int = 0) -> Iterator:
        """The batches `already`..`steps` of an epoch; with `steps` None, one pass over the data."""
        if steps is None:
            yield from self._one_pass()
            return
        while already < steps:
            for batch in self._one_pass():
                already += 1
                yield batch
                if already == steps:
                    break

    def _one_pass(self) -> Iterator:
        fresh = self._iterator is None
        if fresh:
            self._iterator = iter(self.data)
        gave = False
        while True:
            try:
                batch = next(self._iterator)
            except StopIteration:
                break
            gave = True
            yield batch
        one_shot = self._iterator is self.data
        self._iterator = None
        if fresh and not gave:
            raise ValueError(
                "the training data ran out: an iterator can be read once; give something that can be "
                "iterated again (a list, a DataLoader, Batches)"
                if one_shot
                else "the training data gave no batch"
            )
