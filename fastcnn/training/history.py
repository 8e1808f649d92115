"""What a training run went through, epoch by epoch."""

import csv
import io


class History:
    """Metrics per epoch, with Keras's names: `history` maps "loss", "accuracy" and, where there was
    validation data, "val_loss" and "val_accuracy" to one float per epoch; `epoch` lists the epochs, from
    0."""

    def __init__(self, history: dict[str, list[float]] | None = None) -> None:
        self.history = {name: list(values) for name, values in (history or {}).items()}
        self.epoch = list(range(max(map(len, self.history.values()), default=0)))

    def __len__(self) -> int:
        return len(self.epoch)

    def __repr__(self) -> str:
        return f"History({self.history!r})"

    def append(self, logs: dict[str, float]) -> None:
        """Add the metrics of one epoch. Raises ValueError where their names differ from the epochs before."""
        if self.epoch and logs.keys() != self.history.keys():
            raise ValueError(
                f"this epoch has the metrics {sorted(logs)}, those before had {sorted(self.history)}"
            )
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)
        self.epoch.append(len(self.epoch))

    def to_csv(self) -> str:
        """A header and one line per epoch, counted from 1; floats in full precision."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["epoch", *self.history])
        for epoch, values in zip(self.epoch, zip(*self.history.values(), strict=True), strict=True):
            writer.writerow([epoch + 1, *map(repr, values)])
        return text.getvalue()
