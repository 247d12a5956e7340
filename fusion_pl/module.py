"""The Lightning module, which encodes each input, fuses the results and classifies each sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from fusion_pl.config import config_of
from fusion_pl.core import FusionCore, Present
from fusion_pl.data.manifest import ManifestData
from fusion_pl.data.order import global_seed, seed_generators
from fusion_pl.encoders.base import Encoder
from fusion_pl.fusion.base import Fusion
from fusion_pl.tables.hashes import stable_hash
from fusion_pl.tables.split_record import find_split_record
from fusion_pl.tasks import MultiClass, Task
from fusion_pl.training.averaging import add_averaged_weights
from fusion_pl.training.calibrate import FitCalibration, StoredOutputs
from fusion_pl.training.evaluation import evaluate_batch
from fusion_pl.training.feature_cache import CacheOptions, FeatureCache, create_cache
from fusion_pl.training.loggers import is_logged, shows_progress
from fusion_pl.training.loss import Loss, TrainingLoss, total_loss
from fusion_pl.training.mixup import draw_pairs
from fusion_pl.training.model_checks import check_classes, check_head, check_inputs, check_same_task
from fusion_pl.training.optimisation import (
    WarmupCosine,
    count_steps,
    enable_fused_optimizer,
    parameter_groups,
    parameter_ndims,
)
from fusion_pl.training.outlier_statistics import StoredEmbeddings
from fusion_pl.training.stage_metrics import StageMetrics
from fusion_pl.training.statistics import fit_statistics
from fusion_pl.training.train_metrics import TrainMetrics
from fusion_pl.types import Batch, Encoded, Fused
from fusion_pl.uncertainty.calibration import Calibration, Method, read_calibration
from fusion_pl.uncertainty.outliers import OutlierDetector, detectors_config, read_detectors
from fusion_pl.uncertainty.validation_scores import ValidationScores, read_validation_scores

FusionFactory = Callable[[dict[str, int], int], Fusion]
CHECKPOINT_FORMAT = 2


class FusionClassifier(FusionCore, LightningModule):
    """Classify samples of text, images and audio: one encoder per input and a fusion head.

    Args:
        encoders: name of the input -> encoder. Names are columns of the table, unless ``data.inputs`` maps them.
        fusion: factory of the fusion head, from the encoders' dimensions and the number of classes.
        classes: names of the classes, in the order of the targets. On the command line they come from the data.
        optimizer: function that builds the optimizer from parameter groups; norms and biases have no weight decay.
        lr_scheduler: function that builds the learning rate scheduler from the optimizer. ``WarmupCosine`` is stepped
            after every training step, any other scheduler once per epoch.
        pretrained_lr_factor: learning rate of pretrained encoders, as a factor of the optimizer's learning rate.
        loss: label smoothing, class weights, the weight of auxiliary (unimodal) classifiers, and mixup.
        missing: how missing inputs are handled. ``mask``: the head masks them. ``token``: a learned embedding replaces
            them; learning it needs missing inputs in training (empty cells, or ``data.input_dropout``).
        task: what a label is, how it is decided and measured; by default ``MultiClass``, one class per sample.
        calibration: how the probabilities are calibrated on the validation split in ``fit``, for ``test`` and
            ``predict``. ``temperature``: the logits are divided by a number, also one per subset of the inputs, which
            changes no decision of ``MultiClass``. ``vector``: each logit has a scale and a shift. ``none``: not at all.

    Raises:
        UserError: for an invalid name of an input, fewer than two classes, or options that do not match the classes.

    Example:
        >>> from fusion_pl.encoders import TinyText
        >>> from fusion_pl.fusion import Mean
        >>> model = FusionClassifier({"title": TinyText()}, Mean, classes=["ham", "spam"])
        >>> sorted(model.processors)
        ['title']
    """

    def __init__(  # noqa: PLR0913 - the options of one class in a configuration
        self,
        encoders: dict[str, Encoder],
        fusion: FusionFactory,
        classes: list[str],
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: WarmupCosine(optimizer, warmup=0.05),
        pretrained_lr_factor: float = 0.1,
        loss: Loss | None = None,
        missing: Literal["mask", "token"] = "mask",
        *,
        task: Task | None = None,
        calibration: Method = "temperature",
    ) -> None:
        check_inputs(encoders)
        check_classes(classes)
        task = task or MultiClass()
        task.set_num_classes(len(classes))
        num_logits = task.num_logits(len(classes))
        super().__init__(encoders, lambda dims: fusion(dims, num_logits), missing)
        self.loss, self.task, self.classes = loss or Loss(), task, list(classes)
        check_head(type(self.fusion), self.task)
        self.fusion.exclusive_classes = self.task.exclusive_classes
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.pretrained_lr_factor, self.auxiliary_heads = pretrained_lr_factor, nn.ModuleDict()
        if self.loss.auxiliary_weight:  # unimodal classifiers, used in training only
            for name, dim in self.dims.items():
                self.auxiliary_heads[name] = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_logits))
        self.training_loss = TrainingLoss(self.loss, self.task, self.classes)
        layers = {name: encoder.hidden_layers for name, encoder in encoders.items()}
        stages = {stage: StageMetrics(stage, self.task, len(classes), layers) for stage in ("val", "test")}
        self.stage_metrics = nn.ModuleDict(stages)
        self.train_metrics = TrainMetrics(self.task)
        self.calibration_method, self.outputs, self.embeddings = calibration, StoredOutputs(), StoredEmbeddings()
        self.calibration: Calibration | None = None
        self.validation_scores: ValidationScores | None = None
        self.outlier_detectors: dict[str, OutlierDetector] = {}
        self.parameter_ndims: dict[str, int] = {}
        self.cache: CacheOptions | None = None
        self.features: FeatureCache | None = None
        self.config()  # fails before training if a checkpoint cannot store an argument

    def enable_cache(
        self, folder: str | Path, max_bytes: int | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Compute the output of frozen encoders once, in runs with a ``FusionData``, and store it as features on disk.

        Inputs that are augmented in training have features in validation and test only.

        Args:
            folder: folder of the features of all encoders.
            max_bytes: maximum size of the folder in bytes; None = 10 % of the free disk and the folder's present size.
            dtype: type of the stored numbers.
        """
        self.cache = CacheOptions(Path(folder), max_bytes, dtype)

    def setup(self, stage: str) -> None:
        """Before training, compute class weights, and load pretrained weights that are not loaded yet."""
        check_same_task(self.task, getattr(self._trainer, "datamodule", None))
        self.features = create_cache(self, stage)
        if stage != "fit":
            return
        self.training_loss.set_up(getattr(self._trainer, "datamodule", None), self.device)
        for name, encoder in self.named_encoders():
            if self.training:
                encoder.update_frozen_modes()  # a callback or the user may have frozen modules
            if not encoder.has_weights:
                encoder.load_pretrained()
                fit_statistics(encoder, name, self._trainer)
                encoder.has_weights = True
        self.parameter_ndims = parameter_ndims(self)  # before a strategy flattens the parameters

    def teardown(self, stage: str) -> None:
        """Let the data open its inputs again."""
        if self.features is not None:
            self.features.data.feature_source = None
            self.features = None

    def encode(self, batch: Batch) -> dict[str, Encoded]:
        """Encode every input of a batch; missing inputs become zeros with a mask of False."""
        for name, encoder in self.named_encoders():
            if isinstance(batch.inputs[name], Encoded):
                if self.features is not None:
                    self.features.check_frozen(name)
            elif self.training:
                encoder.update_frozen_modes()
        return self.encode_present(batch.inputs, batch.present)

    def forward(self, batch: Batch) -> Fused:
        """Encode the inputs of a batch and apply the fusion head."""
        return self.fuse(self.encode(batch))

    def calibrate(self, logits: Tensor, present: Present) -> Tensor:
        """Return the calibrated logits of samples, or the logits if the model has no calibration.

        Args:
            logits: logits of the fusion head, (B, L).
            present: which of the B samples have each input.
        """
        return logits.float() if self.calibration is None else self.calibration.apply(logits, present)

    def calibrated_logits(self, encoded: dict[str, Encoded], present: Present) -> Tensor:
        """Return the logits of encoded inputs, calibrated as for predictions with these inputs."""
        return self.calibrate(self.fuse(encoded).logits, present)

    def compute_losses(self, batch: Batch) -> tuple[dict[str, Tensor], Fused]:
        """Return the terms of the training loss of a batch with targets, and the output of the fusion head."""
        encoded, pairs = self.encode(batch), None
        if self.loss.mixup and self.training:
            pairs = draw_pairs(batch, self.fusion.held_out_mask(batch), self.loss.mixup)
            encoded = pairs.mix_inputs(encoded)
        fused = self.fuse(encoded)
        auxiliary_logits = {name: classify(encoded[name].embedding) for name, classify in self.auxiliary_heads.items()}

        def compute(batch: Batch) -> dict[str, Tensor]:
            losses: dict[str, Tensor] = self.training_loss(self.fusion, fused, auxiliary_logits, batch)
            return losses

        return (pairs.mix_losses(compute, batch) if pairs else compute(batch)), fused

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout by the seed of the run, epoch, batch and process, so that a resumed run has the same numbers."""
        seed = stable_hash(f"model {global_seed()} {self.current_epoch} {batch_idx} {self.global_rank}")
        seed_generators(seed, self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the training loss of a batch, log it, and update the metrics of the epoch."""
        losses, fused = self.compute_losses(batch)
        loss = total_loss(losses)
        self.train_metrics.update_batch(losses, fused, batch)
        if self._trainer is not None and shows_progress(self._trainer):
            self.log("train/loss_step", loss, prog_bar=True, batch_size=len(batch.ids))  # of this process
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Without a progress bar, log the loss of the steps only that loggers write."""
        if not shows_progress(self.trainer) and is_logged(self.trainer):
            loss = outputs["loss"] * self.trainer.accumulate_grad_batches  # by which Lightning has divided it
            self.log("train/loss_step", loss, batch_size=len(batch.ids))

    def on_train_epoch_end(self) -> None:
        """Log losses and score of the epoch, also if all of its batches were trained on before a resume."""
        for name, value in self.train_metrics.results().items():
            self.log(f"train/{name}", value)

    def on_validation_epoch_start(self) -> None:
        """Tell the task whether the validation is part of a training."""
        self.task.start_validation(self.trainer.state.fn == "fit" and not self.trainer.sanity_checking)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics."""
        evaluate_batch(self, batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Update the test metrics, and return the logits for callbacks that write one row per sample."""
        return evaluate_batch(self, batch, "test")

    def configure_callbacks(self) -> list[Callback]:
        """Add the callback that fits the calibration, unless the Trainer has it."""
        has_it = any(isinstance(callback, FitCalibration) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if has_it else [FitCalibration()]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimizer and scheduler; pretrained encoders have ``pretrained_lr_factor`` times the learning rate."""
        if self.features is not None:
            _ = self.features.samples  # encode before the progress bar of the training starts
        pretrained = [encoder for _, encoder in self.named_encoders() if encoder.pretrained_weights]
        groups = parameter_groups(pretrained, self, self.pretrained_lr_factor, self.parameter_ndims)
        optimizer = self.optimizer(groups)
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_factor"]
        enable_fused_optimizer(optimizer)
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, WarmupCosine):
            if scheduler.total_steps is None:
                scheduler.set_total_steps(count_steps(self.trainer))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}

    def config(self) -> dict[str, Any]:
        """Return the configuration that rebuilds this model, as plain data."""
        return {
            "format": CHECKPOINT_FORMAT,
            "classes": self.classes,
            "encoders": {name: config_of(encoder) for name, encoder in self.named_encoders()},
            "fusion": config_of(self.fusion, omit=("dims", "num_classes")),
            "missing": self.missing,
            "task": config_of(self.task),
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the configuration, the encoders' files and the manifest columns to the checkpoint, for inference."""
        data = getattr(self._trainer, "datamodule", None)
        if self._trainer is not None:
            add_averaged_weights(self._trainer, self, checkpoint)
        checkpoint["fusion_pl"] = self.config() | {
            "files": {name: encoder.files() for name, encoder in self.named_encoders()},
            "columns": dict(getattr(data, "columns", {name: name for name in self.encoders})),
            "label": getattr(data, "label", None),
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "validation_scores": None if self.validation_scores is None else self.validation_scores.to_config(),
            "outlier_detectors": detectors_config(self.outlier_detectors),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the calibration, and the splits of a data class with another name than that of the run."""
        calibration = read_calibration(checkpoint["fusion_pl"], list(self.encoders), self.task)
        self.calibration = None if self.calibration_method == "none" else calibration
        if self.calibration_method != "none" or calibration is None:  # the scores are those of calibrated probabilities
            self.validation_scores = read_validation_scores(checkpoint["fusion_pl"])
        self.outlier_detectors = read_detectors(checkpoint["fusion_pl"], self.dims)
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, ManifestData) and type(data).__qualname__ not in checkpoint:
            data.load_state_dict(find_split_record(checkpoint, type(data)) or {})
