"""The whole model on one screen: encode each input, fuse, classify."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric

from fusion_pl.encoders.base import Encoder
from fusion_pl.fusion.base import Entropy, Fusion
from fusion_pl.layers import hide, spread, stand_in
from fusion_pl.metrics import balanced_weights, classification_metrics, confusion_matrix, subsets
from fusion_pl.recipe import Recipe, recipe_of
from fusion_pl.training.cache import EncodedCache, is_frozen
from fusion_pl.training.loss import Loss
from fusion_pl.training.optimisation import WarmupCosine, parameter_groups, use_fused_step
from fusion_pl.types import Batch, Encoded, Fused, Processor, UserError

FusionFactory = Callable[[dict[str, int], int], Fusion]
CHECKPOINT_FORMAT = 1
MANY_INPUTS = 5  # from here on, not every choice of them is tested


class FusionClassifier(LightningModule):
    """Classify samples of text, images and sound: one encoder per input, joined by a fusion head.

    Args:
        encoders: name of the input -> its encoder. Names are yours: columns, unless ``data.inputs`` maps them.
        fusion: builds the head from the encoders' widths and the number of classes.
        classes: names of the classes, in the order of the targets. From the command line they come from the data.
        optimizer: made from parameter groups; norms and biases get no weight decay.
        lr_scheduler: warm-up and cosine by step; one of your own is stepped once an epoch.
        pretrained_lr_factor: learning rate of pretrained encoders relative to the optimizer's.
        loss: label smoothing, class weights, and whether every input also learns to decide by itself.
        missing: what stands for an input that a sample lacks: ``mask``, nothing, the head leaves it out; ``token``, a
            learned vector, which training has to have met (missing cells, or ``data.input_dropout``).

    Raises:
        UserError: for a name that cannot be used, fewer than two classes, or options that do not fit them.

    Example:
        >>> from fusion_pl.encoders import TinyText
        >>> from fusion_pl.fusion import Mean
        >>> model = FusionClassifier({"title": TinyText()}, Mean, classes=["ham", "spam"])
        >>> sorted(model.processors)
        ['title']
    """

    def __init__(
        self,
        encoders: dict[str, Encoder],
        fusion: FusionFactory,
        classes: list[str],
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01),
        lr_scheduler: LRSchedulerCallable = lambda optimizer: WarmupCosine(optimizer, warmup=0.05),
        pretrained_lr_factor: float = 0.1,
        loss: Loss | None = None,
        missing: Literal["mask", "token"] = "mask",
    ) -> None:
        super().__init__()
        self.loss = loss or Loss()
        self.loss.check(classes)
        _check(list(encoders), classes)
        self.classes = list(classes)
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion({name: encoder.dim for name, encoder in encoders.items()}, len(classes))
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.pretrained_lr_factor = pretrained_lr_factor
        self.missing = missing
        dims = {name: encoder.dim for name, encoder in encoders.items()} if missing == "token" else {}
        self.stand_ins = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name, dim in dims.items()})
        # Each input's own decision, for training: part of the model where the loss asks for it.
        own = encoders.items() if self.loss.inputs else ()
        self.deciders = nn.ModuleDict(
            {name: nn.Sequential(nn.LayerNorm(e.dim), nn.Linear(e.dim, len(classes))) for name, e in own}
        )
        self.register_buffer("loss_weights", None, persistent=False)
        self.measures = nn.ModuleDict(
            {stage: classification_metrics(len(classes), f"{stage}/") for stage in ("val", "test")}
        )
        self.confusion = confusion_matrix(len(classes))
        # Metrics of their own: over several processes, Lightning's mean of logged numbers rounds odd counts down.
        self.by_inputs = nn.ModuleDict({"+".join(some): MeanMetric() for some in fewer(list(encoders))})
        self.by_depth = nn.ModuleDict(
            {f"{name}/{level}": MeanMetric() for name, encoder in encoders.items() for level in encoder.levels}
        )
        self.cache: Path | None = None
        self.augmented: set[str] = set()
        self.kept: dict[str, EncodedCache] = {}
        self.recipe()  # what a checkpoint could not carry is refused now, not after an hour of training

    def keep_encoded(self, folder: Path, augmented: Collection[str]) -> None:
        """Keep on disk what frozen encoders return, and cut their long clips where validation does.

        Args:
            folder: of all caches.
            augmented: inputs that training changes each time: theirs are kept in validation and test only.
        """
        self.cache, self.augmented = folder, set(augmented)
        for _, encoder in self._encoders():
            if is_frozen(encoder) and hasattr(encoder.processor, "fixed"):
                encoder.processor.fixed = True

    @property
    def processors(self) -> dict[str, Processor]:
        """What turns opened values into the encoders' tensors: name of the input -> processor."""
        return {name: encoder.processor for name, encoder in self._encoders()}

    def _encoders(self) -> list[tuple[str, Encoder]]:
        return [(name, encoder) for name, encoder in self.encoders.items() if isinstance(encoder, Encoder)]

    def setup(self, stage: str) -> None:
        """Load pretrained weights and weigh the classes, when training starts."""
        self.kept.clear()  # they go by the weights, which may now be others
        if stage != "fit":
            return
        for _, encoder in self._encoders():
            encoder.load_pretrained()
        if self.loss.class_weights == "balanced":
            counts = getattr(getattr(self.trainer, "datamodule", None), "class_counts", None)
            if counts is None:
                raise UserError(
                    "class_weights: balanced counts the training samples of a FusionData; give one number a class"
                )
            self.loss_weights = balanced_weights(counts).to(self.device)
        elif self.loss.class_weights is not None:
            self.loss_weights = torch.tensor(self.loss.class_weights, device=self.device)

    def encode(self, batch: Batch) -> dict[str, Encoded]:
        """Encode every input of a batch; a sample that lacks one gets zeros and a mask of False there."""
        found = {}
        for name, encoder in self._encoders():
            if self.cache is not None and is_frozen(encoder) and not (self.training and name in self.augmented):
                if name not in self.kept:
                    self.kept[name] = EncodedCache(encoder, self.cache)
                found[name] = spread(self.kept[name](batch.inputs[name]), batch.present[name])
            else:
                found[name] = spread(encoder(**batch.inputs[name]), batch.present[name])
        return found

    def fuse(self, encoded: dict[str, Encoded], only: Collection[str] | None = None) -> Fused:
        """Let the head decide.

        Args:
            encoded: as ``encode`` returns it.
            only: the inputs to use, as if every sample lacked the others; None = all.
        """
        if only is not None:
            encoded = {name: one if name in only else hide(one) for name, one in encoded.items()}
        stood = {name: stand_in(encoded[name], vector) for name, vector in self.stand_ins.items()}
        fused: Fused = self.fusion(encoded | stood)
        return fused

    def forward(self, batch: Batch) -> Fused:
        """Return what the fusion head makes of a batch."""
        return self.fuse(self.encode(batch))

    def objective(self, batch: Batch) -> tuple[Tensor, Fused]:
        """Return what training minimises on a batch with targets, and the head's decision."""
        encoded = self.encode(batch)
        fused = self.fuse(encoded)
        assert batch.target is not None
        entropy = self._entropy(batch.target)
        loss = self.fusion.loss(fused, batch, entropy)
        held_out = self.fusion.held_out(batch)
        for name, decide in self.deciders.items():
            among = batch.present[name] if held_out is None else batch.present[name] & ~held_out
            loss = loss + self.loss.inputs * entropy(decide(encoded[name].pooled), among)
        return loss, fused

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss, fused = self.objective(batch)
        assert batch.target is not None
        size = len(batch.ids)
        self.log("train/loss_step", loss, prog_bar=True, batch_size=size)  # this process's: nobody waits for the others
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        right = fused.logits.detach().argmax(-1).eq(batch.target).float().mean()
        self.log("train/accuracy", right, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    def _entropy(self, target: Tensor) -> Entropy:
        """Return the cross-entropy of a batch with these targets, for the head and the deciders."""
        smoothing = self.loss.label_smoothing

        def entropy(logits: Tensor, among: Tensor | None = None) -> Tensor:
            reduction = "mean" if among is None else "none"
            losses = cross_entropy(
                logits.float(), target, self.loss_weights, label_smoothing=smoothing, reduction=reduction
            )
            # A sum over the batch, so that one without this input gives zero, and every parameter takes part.
            return losses if among is None else losses.masked_fill(~among, 0.0).sum() / len(target)

        return entropy

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a validation batch."""
        self._measure(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Measure a test batch, and return its logits for who asks sample by sample."""
        return self._measure(batch, "test")

    def _measure(self, batch: Batch, stage: Literal["val", "test"]) -> Tensor:
        assert batch.target is not None
        encoded = self.encode(batch)
        fused = self.fuse(encoded)
        logits, size = fused.logits.float(), len(batch.ids)
        loss = cross_entropy(logits, batch.target)  # neither smoothed nor weighted: comparable between runs
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        measures: Any = self.measures[stage]
        measures.update(logits.softmax(-1), batch.target)
        self.log_dict(measures, prog_bar=False, batch_size=size)
        self.confusion.update(logits, batch.target)
        if fused.weights is not None:
            for name, weight in zip(self.encoders, fused.weights.float().mean(0), strict=True):
                self.log(f"{stage}/weight/{name}", weight, batch_size=size, sync_dist=True)
        for name, encoder in self._encoders():
            weighed, count = encoded[name].depth, batch.present[name].sum()
            if weighed is not None:
                for level, weight in zip(encoder.levels, weighed.float().sum(0) / count.clamp(min=1), strict=True):
                    self._log_mean(f"{stage}/depth/{name}/{level}", self.by_depth[f"{name}/{level}"], weight, count)
        if self.trainer.state.fn != "fit":  # there it would be paid for after every epoch
            self._measure_by_inputs(encoded, batch, stage)
        return logits

    def _measure_by_inputs(self, encoded: dict[str, Encoded], batch: Batch, stage: str) -> None:
        """Measure accuracy with fewer inputs, over the samples that have one of them."""
        assert batch.target is not None
        for some in fewer(list(self.encoders)):
            has = torch.stack([batch.present[name] for name in some]).any(0)
            right = (self.fuse(encoded, only=some).logits.argmax(-1) == batch.target) & has
            share, key = right.sum() / has.sum().clamp(min=1), "+".join(some)
            self._log_mean(f"{stage}/accuracy/{key}", self.by_inputs[key], share, has.sum())

    def _log_mean(self, name: str, metric: nn.Module, value: Tensor, count: Tensor) -> None:
        """Log a mean over all samples of an epoch, of which a batch has ``count``."""
        mean: Any = metric
        mean.update(value, weight=count)
        self.log(name, mean)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build optimizer and schedule; pretrained encoders start at ``pretrained_lr_factor`` times the rate."""
        slow = [encoder for _, encoder in self._encoders() if encoder.pretrained_weights]
        optimizer = self.optimizer(parameter_groups(slow, self, self.pretrained_lr_factor))
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_factor"]
        use_fused_step(optimizer)
        scheduler = self.lr_scheduler(optimizer)
        if isinstance(scheduler, WarmupCosine):
            if scheduler.total_steps is None:
                scheduler.set_total_steps(int(self.trainer.estimated_stepping_batches))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}

    def recipe(self) -> dict[str, Any]:
        """Return how to build this model again, as plain data."""
        encoders: dict[str, Recipe] = {name: recipe_of(encoder) for name, encoder in self._encoders()}
        return {
            "format": CHECKPOINT_FORMAT,
            "classes": self.classes,
            "encoders": encoders,
            "fusion": recipe_of(self.fusion, without=("dims", "num_classes")),
            "missing": self.missing,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put all that inference needs into the checkpoint: recipe, the encoders' files, the manifest's columns."""
        data = getattr(self._trainer, "datamodule", None)
        checkpoint["fusion_pl"] = self.recipe() | {
            "files": {name: encoder.files() for name, encoder in self._encoders()},
            "columns": dict(getattr(data, "columns", {name: name for name in self.encoders})),
        }


def fewer(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the choices of inputs, fewer than all of them, that a model is measured with."""
    some = subsets(names)[:-1]
    return some if len(names) < MANY_INPUTS else [one for one in some if len(one) in {1, len(names) - 1}]


def _check(names: list[str], classes: list[str]) -> None:
    if not names:
        raise UserError("model.encoders is empty: name at least one input and its encoder")
    for name in names:
        if not name or "." in name or hasattr(nn.ModuleDict(), name):
            raise UserError(
                f"an input cannot be named {name!r}: choose a name without a dot that torch does not use itself"
            )
    if len(classes) < 2:
        raise UserError(f"a classifier needs at least two classes, and the data has {len(classes)}: {classes}")
