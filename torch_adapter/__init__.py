"""cas for PyTorch: the state of a training run. `adapter`, which the core finds by its entry point, stores tensors."""

from .train_state import TrainState

__all__ = ["TrainState"]
