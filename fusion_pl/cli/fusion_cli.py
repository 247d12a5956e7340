"""Lightning's command line for this project's model and data."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt, restricted_number_type
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor
from lightning.pytorch.callbacks.throughput_monitor import ThroughputMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fusion_pl.cli import runs
from fusion_pl.cli.checks import (
    AUTO,
    build,
    check_monitors,
    check_optimizer,
    check_options,
    choose_monitor,
    convert_constructor_errors,
    read_matching_checkpoint,
)
from fusion_pl.cli.parsing import explain_parse_error, refuse_linked_options
from fusion_pl.cli.seed import choose_seed
from fusion_pl.data.base import FusionData
from fusion_pl.data.manifest import ManifestData
from fusion_pl.files import cache_folder
from fusion_pl.tables.split_record import find_split_record
from fusion_pl.training.best import BestCheckpoint
from fusion_pl.training.calibrate import FitCalibration
from fusion_pl.training.checkpoints import add_checkpoint_io
from fusion_pl.training.console import console_callbacks
from fusion_pl.training.dry_run import DryRun
from fusion_pl.training.hardware import (
    avoid_driver_search,
    choose_num_threads,
    choose_precision,
    reuse_freed_memory,
)
from fusion_pl.training.interrupt import SaveWhenStopped, StoppedBySignal
from fusion_pl.training.last_step import ValidateLastStep
from fusion_pl.training.loggers import LogInterval
from fusion_pl.training.plateau import ResumePlateau
from fusion_pl.training.profiler import NoProfiler
from fusion_pl.training.results import WriteResults
from fusion_pl.training.resume import CheckTrainingState
from fusion_pl.training.run_files import WriteSplits
from fusion_pl.training.tensorboard import TensorBoardFigures
from fusion_pl.training.train_metrics import SaveTrainMetrics
from fusion_pl.types import UserError


class FusionCLI(LightningCLI):
    """LightningCLI with this project's defaults, callbacks, checks and run folders.

    It passes the classes from the data to the model, and the processors of the encoders from the model to the data.

    Args:
        subcommand: the command to run, fit, validate or test; its parser alone is built.
        arguments: of LightningCLI.
    """

    def __init__(self, subcommand: str, *arguments: Any, **keyword_arguments: Any) -> None:
        self._command = subcommand
        super().__init__(*arguments, **keyword_arguments)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the command, with the arguments of the Trainer's method that are not command-line options."""
        data = {"train_dataloaders", "val_dataloaders"} if self._command == "fit" else {"dataloaders", "verbose"}
        return {self._command: {"model", "datamodule", "weights_only"} | data}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--seed_everything`` as Lightning does, but limited to the seeds that numpy accepts."""
        seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])
        parser.add_argument(
            "--seed_everything",
            type=bool | seed,
            default=self.seed_everything_default,
            help="Seed of the initial weights and, for every epoch, of dropout, mixup, augmentation, input dropout and "
            "the order of the samples; true or false: a random seed, which is logged and written to config.yaml.",
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of early stopping, checkpoints and hardware, and link the data's classes to the model."""
        parser.link_arguments("model.task", "data.init_args.task")
        parser.link_arguments("data", "model.classes", compute_fn=self._read_classes, apply_on="instantiate")
        parser.add_argument(
            "--dry_run",
            type=bool,
            nargs="?",
            const=True,
            default=False,
            help="Check the table, all files, the encoders and gradients of a batch; train nothing and write nothing.",
        )
        parser.add_argument(
            "--threads",
            type=PositiveInt | None,
            help="Number of CPU threads; null: all cores, or fewer if the data loader of a small model needs them.",
        )
        parser.add_argument(
            "--keep_memory",
            type=bool,
            default=True,
            help="When training on a CPU, keep freed memory for the next step instead of returning it to the system.",
        )
        _add_cache_arguments(parser)
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "early_stopping.monitor": "val/loss",
                "early_stopping.mode": "min",
                "early_stopping.patience": 10,
                # check after validation: a resumed run may end an epoch without validating
                "early_stopping.check_on_train_epoch_end": False,
                "checkpoint.monitor": AUTO,
                "checkpoint.mode": AUTO,
                "checkpoint.filename": "best",
                "checkpoint.save_last": True,
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.enable_version_counter": False,
                "checkpoint.save_on_train_epoch_end": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line; raise a ``UserError`` if it is invalid."""
        refuse_linked_options(sys.argv[2:])
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            subcommand, *arguments = sys.argv[1:]
            raise UserError(explain_parse_error(error, self._subcommand_parsers[subcommand], arguments)) from error

    def _read_classes(self, data: FusionData) -> list[str]:
        """Return the classes of the data; if its table lacks the labels, report all columns that are missing."""
        if isinstance(data, ManifestData) and data.configured_classes is None and not data.has_labels:
            data.check_columns(self._get(self.config, "model").encoders or {})
        return data.classes

    def _add_instantiators(self) -> None:
        super()._add_instantiators()
        self.parser.add_instantiator(build, object)

    def _parse_ckpt_path(self) -> None:
        """Ignore the options in the checkpoint; ``read_matching_checkpoint`` compares both configurations."""

    def _set_seed(self) -> None:
        """Do nothing: ``before_instantiate_classes`` sets the seed, when the resumed run is known."""

    def before_instantiate_classes(self) -> None:
        """Check the options, resolve ``--ckpt_path best`` or ``last`` to a file, and set the seed."""
        config = self.config[self.config.subcommand]
        check_options(config)
        choose_monitor(config)
        logger = config.trainer.logger
        if name := config.ckpt_path or (None if self.config.subcommand == "fit" else "best"):
            config.ckpt_path = runs.find_checkpoint(name, runs.runs_folder(logger), runs.checkpoints_folder(config))
        version = runs.run_version(config.ckpt_path, logger)
        if self.config.subcommand == "fit" and isinstance(logger, Namespace) and version is not None:
            logger.init_args["version"] = version  # resume in the same folder and append to its TensorBoard curves
        seed = choose_seed(config.seed_everything, config.ckpt_path, config.trainer.num_nodes)
        config.seed_everything = seed_everything(seed, workers=True)
        self._dump_config()  # before the model is built: jsonargparse would report an error as a wrong value

    def _dump_config(self) -> None:
        """Store the configuration as plain data, as LightningCLI does, but without validating it a second time."""
        if hasattr(self, "config_dump"):
            return
        options = {"skip_link_targets": False, "skip_unset": False, "skip_validation": True}
        try:
            text = self.parser.dump(self.config, format="yaml", **options)
        except (ValueError, yaml.YAMLError) as error:
            match = re.search(r"cannot represent an object', (.+?)\)", str(error))
            if match is None:
                raise
            raise UserError(
                f"a class in the configuration has {match[1]} as the default of an option, which config.yaml cannot "
                "contain: set that option to text (for Timer: --trainer.callbacks.interval step)"
            ) from error
        self.config_dump = yaml.safe_load(text)[self.config.subcommand]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Pass the processors to the data, add callbacks, and choose precision and CPU threads if they are not set."""
        self.datamodule.processors = self.model.processors
        config = self.config[self.config.subcommand]
        check_optimizer(self.model)
        if not config.trainer.callbacks:  # a user's callback may log other metrics
            check_monitors(config, self.model)
        if config.cache and not config.dry_run:
            max_bytes = int(config.cache_limit * 2**30) if config.cache_limit is not None else None
            folder = cache_folder() if config.cache == "auto" else Path(config.cache)
            self.model.enable_cache(folder, max_bytes, getattr(torch, config.cache_dtype))
        checkpoints = {}  # path -> checkpoint that is already in memory
        if config.ckpt_path:
            checkpoint = checkpoints[config.ckpt_path] = read_matching_checkpoint(
                self.model, config.ckpt_path, self.datamodule
            )
            record = find_split_record(checkpoint, type(self.datamodule))
            if record and isinstance(self.datamodule, ManifestData):  # the Trainer would restore it only after setup
                self.datamodule.load_state_dict(record)
        self.stopper = SaveWhenStopped()
        options = self._get(self.config_init, "trainer")
        callbacks = [self.stopper, CheckTrainingState(), SaveTrainMetrics(), ResumePlateau(), ValidateLastStep()]
        callbacks += [FitCalibration(), WriteSplits(), WriteResults()]
        if config.dry_run:
            callbacks = [self.stopper, CheckTrainingState(), DryRun()]
            kwargs["fast_dev_run"] = 1
        elif options.logger is not False:
            callbacks += [LearningRateMonitor(), ThroughputMonitor(lambda batch: len(batch.ids), window_size=10)]
            callbacks.append(TensorBoardFigures(config.as_dict()))
        if options.log_every_n_steps is None:
            callbacks.append(LogInterval())
        if options.precision is None:
            kwargs["precision"] = config.trainer.precision = choose_precision(self.model, options.accelerator)
        kwargs["profiler"] = options.profiler or NoProfiler()
        kwargs["plugins"] = add_checkpoint_io(options.plugins, checkpoints)
        user_callbacks = options.callbacks or []
        user_callbacks = user_callbacks if isinstance(user_callbacks, list) else [user_callbacks]
        kwargs["callbacks"] = [*user_callbacks, *console_callbacks(options), *callbacks]
        kwargs["enable_model_summary"] = False  # console_callbacks prints a shorter summary
        with convert_constructor_errors("trainer", options.as_dict(), TypeError):
            trainer = super().instantiate_trainer(**kwargs)
        if trainer.strategy.root_device.type == "cpu":
            avoid_driver_search()
            if config.threads is not None or (trainer.num_devices == 1 and "OMP_NUM_THREADS" not in os.environ):
                torch.set_num_threads(
                    config.threads or choose_num_threads(self.model, self.datamodule.num_loader_workers)
                )
            if self.config.subcommand == "fit" and config.keep_memory:
                reuse_freed_memory()
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        signals, stopper = self.stopper.signals, self.stopper
        if subcommand == "fit":
            folder = runs.training_folder(self.trainer, resumes=self.config.fit.ckpt_path is not None)
        else:
            folder = runs.evaluation_folder(self.trainer)
        try:
            with signals.handle_signals(), folder:
                super()._run_subcommand(subcommand)
        except (SIGTERMException, StoppedBySignal) as stop:
            message = f"Stopped; saved {stopper.saved_path}. To resume, repeat the command with --ckpt_path last"
            if isinstance(stop, StoppedBySignal) and not stopper.saved_path:
                raise
            arguments = [message] if stopper.saved_path else []
            raise StoppedBySignal(signals.received_signum or signal.SIGTERM, *arguments) from None
        except RuntimeError as error:
            is_connection = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
            if signals.received_signum is None or not is_connection:
                raise
            # Another process has stopped, and has saved the checkpoint.
            raise StoppedBySignal(signals.received_signum, "Stopped at once, without saving.") from None
        if signals.received_signum is not None:
            raise StoppedBySignal(signals.received_signum, "Stopped after the last step.")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        # Without weights_only, loading a checkpoint could execute code.
        kwargs = super()._prepare_subcommand_kwargs(subcommand) | {"weights_only": True}
        return kwargs if subcommand == "fit" else kwargs | {"verbose": False}  # WriteResults prints the table


def _add_cache_arguments(parser: LightningArgumentParser) -> None:
    """Add the options of the features of frozen encoders."""
    parser.add_argument(
        "--cache",
        type=str | None,
        default="auto",
        help="Folder for features: the outputs of frozen encoders (freeze: all), computed once for all epochs and "
        "runs. auto: fusion-pl in the user's cache folder; null: none. Inputs that are augmented in training have "
        "features for validation and test only; long clips are cropped to their centre.",
    )
    parser.add_argument(
        "--cache_limit",
        type=PositiveFloat | None,
        help="Maximum size of the --cache folder in GiB; null: 10 %% of the sum of the free disk and the "
        "folder's present size.",
    )
    parser.add_argument(
        "--cache_dtype",
        type=Literal["float32", "bfloat16", "float16"],
        default="float32",
        help="Type of the numbers in the --cache folder; 16 bits need half the space and round the features.",
    )
