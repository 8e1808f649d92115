"""The picture of a training run."""

from pathlib import Path

from .._extras import require
from .history import History

_TRAIN, _VALIDATION, _INK, _FAINT = "#9aa5b1", "#0b6e99", "#28323c", "#e4e8ec"


def draw_curves(history: History, path: Path, title: str, best_epoch: int | None = None) -> None:
    """Loss and accuracy of training and validation over the epochs as a PNG at `path`; `best_epoch` (from 1)
    is marked. Needs matplotlib, of which only the file-writing part is used."""
    figure_module = require("matplotlib.figure")
    ticker = require("matplotlib.ticker")
    figure = figure_module.Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    epochs = [epoch + 1 for epoch in history.epoch]
    for panel, metric in zip(panels, ("loss", "accuracy"), strict=True):
        _draw_metric(panel, history, metric, epochs, best_epoch)
        panel.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        panel.set_xlabel("epoch", color=_INK)
        panel.set_title(metric.capitalize(), loc="left", color=_INK, fontsize=11, fontweight="bold")
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(_TRAIN)
        panel.tick_params(colors=_INK, length=3)
        panel.grid(axis="y", color=_FAINT)
        panel.set_axisbelow(True)
        panel.legend(frameon=False, labelcolor=_INK)
    panels[0].set_ylim(bottom=0)
    panels[1].yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    figure.suptitle(title, color=_INK, fontsize=12)
    figure.savefig(path, dpi=150, format="png")


def _draw_metric(panel, history: History, metric: str, epochs: list[int], best_epoch: int | None) -> None:
    marker = "o" if len(epochs) == 1 else None
    train = history.history[metric]
    panel.plot(epochs, train, color=_TRAIN, linewidth=1.8, marker=marker, label="training")
    validation = history.history.get(f"val_{metric}")
    if validation:
        panel.plot(epochs, validation, color=_VALIDATION, linewidth=1.8, marker=marker, label="validation")
    if best_epoch:
        value = (validation or train)[best_epoch - 1]
        shown = f"{value:.2%}" if metric == "accuracy" else f"{value:.3f}"
        panel.plot(
            [best_epoch], [value], "o", color=_VALIDATION, markersize=7, markeredgecolor="white",
            label=f"best epoch {best_epoch}: {shown}",
        )  # fmt: skip
