"""Training, with Keras's names over PyTorch's parts."""

from .callbacks import Callback
from .history import History
from .run import Checkpoints, DataConfig, Run, RunConfig, RunError, TrainingConfig
from .trainer import Evaluation, Trainer

__all__ = [
    "Callback",
    "Checkpoints",
    "DataConfig",
    "Evaluation",
    "History",
    "Run",
    "RunConfig",
    "RunError",
    "Trainer",
    "TrainingConfig",
]
