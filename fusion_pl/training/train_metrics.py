"""Training metrics of an epoch; a checkpoint within the epoch has their state."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from fusion_pl.tasks import Task
from fusion_pl.training.stage_metrics import Mean
from fusion_pl.training.states import InvalidStateError, describe
from fusion_pl.types import Batch, Fused, UserError


class TrainMetrics(nn.ModuleDict):
    """Mean loss and score over the training samples of an epoch, computed while the model is trained on them.

    Args:
        task: the task, which tells whether a prediction is correct.
    """

    def __init__(self, task: Task) -> None:
        super().__init__({"loss": Mean(), task.score: Mean()})
        self._task = [task]  # in a list, so that it is a module of the model only

    def update_batch(self, loss: Tensor, fused: Fused, batch: Batch) -> None:
        """Add a batch and its mean loss."""
        assert batch.target is not None
        size = len(batch.ids)
        (task,) = self._task
        sums = {"loss": loss.detach() * size, task.score: task.is_correct(fused.logits, batch.target).sum()}
        for name, total in sums.items():
            self[name].update(total, size)  # type: ignore[operator]


class SaveTrainMetrics(Callback):
    """Save and restore the model's ``TrainMetrics``.

    The checkpoint has the sums of each process: added up, they would be rounded differently from a run without a stop.
    If the number of processes changes, rank 0 receives the sums of all of them.
    """

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add metric name -> ``total`` and ``count``, each of shape (processes,)."""
        checkpoint["callbacks"][self.state_key] = {
            name: {
                key: trainer.strategy.all_gather(value).reshape(-1).cpu() for key, value in metric.metric_state.items()
            }
            for name, metric in pl_module.train_metrics.items()
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Restore the metrics, unless ``CheckTrainingState`` has removed their state."""
        state = checkpoint["callbacks"].pop(self.state_key, None)
        if state is None:
            return
        for name, metric in pl_module.train_metrics.items():
            try:
                total, count = (_process_value(trainer, state[name][key]) for key in ("total", "count"))
            except (KeyError, InvalidStateError) as error:
                raise UserError(
                    f"fit cannot resume from {trainer.ckpt_path}: its state of train/{name} is damaged ({error}); "
                    "train from the start without --ckpt_path"
                ) from error
            metric.update(total.to(metric.device), count.to(metric.device))


def _process_value(trainer: Trainer, values: Any) -> Tensor:
    """Return the value of this process."""
    if not isinstance(values, Tensor) or values.ndim != 1 or not len(values) or values.is_complex():
        raise InvalidStateError(f"it is {describe(values)}, expected one number per process")
    if len(values) == trainer.world_size:
        return values[trainer.global_rank]
    return values.sum() if trainer.global_rank == 0 else values.new_zeros(())
