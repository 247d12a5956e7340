"""Training metrics of an epoch; a checkpoint within the epoch has their state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from fusion_pl.tasks import Task
from fusion_pl.training.loss import total_loss
from fusion_pl.training.stage_metrics import Mean
from fusion_pl.training.states import InvalidStateError, describe
from fusion_pl.types import Batch, Fused, UserError

TERM = "loss/"  # beginning of the names of terms in a checkpoint


class TrainMetrics(nn.ModuleDict):
    """Mean loss and score over the training samples of an epoch, computed while the model is trained on them.

    Args:
        task: the task, which tells whether a prediction is correct.

    Attributes:
        terms: mean of each term of the loss, if it has several; created when a batch or a checkpoint has them.
    """

    def __init__(self, task: Task) -> None:
        super().__init__({"loss": Mean(), task.score: Mean()})
        self._task = [task]  # in a list, so that it is a module of the model only
        self.terms: dict[str, Mean] = {}

    def update_batch(self, losses: Mapping[str, Tensor], fused: Fused, batch: Batch) -> None:
        """Add a batch and its mean losses by name."""
        assert batch.target is not None
        (task,), size = self._task, len(batch.ids)
        sums = {"loss": total_loss(losses).detach() * size}
        sums[task.score] = task.is_correct(fused.logits, batch.target).sum()
        for name, total in sums.items():
            self[name].update(total, size)  # type: ignore[operator]
        if len(losses) > 1:
            for name, loss in losses.items():
                self.term(name, loss.device).update(loss.detach() * size, size)

    def term(self, name: str, device: torch.device) -> Mean:
        """Return the mean of a term of the loss."""
        if name not in self.terms:
            self.terms[name] = Mean().to(device)
        return self.terms[name]

    def results(self) -> dict[str, Tensor | Mean]:
        """Return the metrics of the epoch for logging, and the mean of each term of the loss, which is reset."""
        values: dict[str, Tensor | Mean] = {name: mean for name, mean in self.all_means().items() if mean.update_called}
        for name, metric in self.terms.items():
            if metric.update_called:
                values[f"{TERM}{name}"] = metric.compute()
                metric.reset()
        return values

    def all_means(self) -> dict[str, Mean]:
        """Return all metrics by name; ``loss/<name>`` for a term of the loss."""
        means = {name: metric for name, metric in self.items() if isinstance(metric, Mean)}
        return means | {f"{TERM}{name}": metric for name, metric in self.terms.items()}


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
            for name, metric in pl_module.train_metrics.all_means().items()
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Restore the metrics, unless ``CheckTrainingState`` has removed their state."""
        state = checkpoint["callbacks"].pop(self.state_key, None)
        if state is None:
            return
        for name in filter(_is_term, state):
            pl_module.train_metrics.term(name.removeprefix(TERM), pl_module.device)
        for name, metric in pl_module.train_metrics.all_means().items():
            try:
                total, count = (_process_value(trainer, state[name][key]) for key in ("total", "count"))
            except (KeyError, InvalidStateError) as error:
                raise UserError(
                    f"fit cannot resume from {trainer.ckpt_path}: its state of train/{name} is damaged ({error}); "
                    "train from the start without --ckpt_path"
                ) from error
            metric.update(total.to(metric.device), count.to(metric.device))


def _is_term(name: Any) -> bool:
    return isinstance(name, str) and name.startswith(TERM)


def _process_value(trainer: Trainer, values: Any) -> Tensor:
    """Return the value of this process."""
    if not isinstance(values, Tensor) or values.ndim != 1 or not len(values) or values.is_complex():
        raise InvalidStateError(f"it is {describe(values)}, expected one number per process")
    if len(values) == trainer.world_size:
        return values[trainer.global_rank]
    return values.sum() if trainer.global_rank == 0 else values.new_zeros(())
