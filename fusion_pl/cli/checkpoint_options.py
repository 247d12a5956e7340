"""Options of the commands that need a checkpoint and a table alone: ``predict``, ``explain`` and ``evaluate``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fusion_pl.cli.runs import LOGGER, find_checkpoint
from fusion_pl.data.manifest import ManifestData
from fusion_pl.predict import Predictor
from fusion_pl.tables.columns import check_input_columns
from fusion_pl.tables.table import raise_problems

# Data options that prediction does not use, because they concern training or labels.
TRAINING_OPTIONS = {
    *("label", "task", "split", "classes", "val_fraction", "test_fraction", "seed", "augment", "on_bad_file"),
    *("drop_empty", "input_dropout", "check_files", "group", "time", "fold", "splits"),
    *("sampling", "sample_weight", "bucket_by_length"),
}

RULES = ("coverage", "coverage_by_class", "abstain", "doubt", "outliers")  # options of Predictor.rules


def add_checkpoint_option(parser: ArgumentParser) -> None:
    """Add the option of the checkpoint, the first one in help and messages."""
    parser.add_argument(
        "--ckpt_path",
        type=str,
        required=True,
        help="a checkpoint file, or best or last of the newest run",
    )


def add_device_options(parser: ArgumentParser) -> None:
    """Add the options of the device, and of the packages and the folder of the checkpoint."""
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add_loading_options(parser)


def add_loading_options(parser: ArgumentParser) -> None:
    """Add the options of what may run, and of where the newest run is."""
    parser.add_argument("--trust", type=str, default=[], help="packages whose encoders and heads may run", nargs="*")
    meanings = {"save_dir": "folder of all runs, for --ckpt_path best", "name": "name of the run, for --ckpt_path best"}
    for name, meaning in meanings.items():
        parser.add_argument(f"--trainer.logger.{name}", type=str, default=LOGGER["init_args"][name], help=meaning)


def add_model_options(parser: ArgumentParser, unused: Collection[str] = TRAINING_OPTIONS) -> None:
    """Add the options of the device and of the table, without its ``unused`` ones."""
    add_device_options(parser)
    parser.add_class_arguments(ManifestData, "data", skip=set(unused))


def checkpoint_path(config: Namespace, name: str) -> str:
    """Return the path of a checkpoint, which may be ``best`` or ``last``.

    Raises:
        MissingFileError: if it does not exist.
    """
    logger = config.trainer.logger
    return find_checkpoint(name, Path(logger.save_dir, logger.name))


def load_model(config: Namespace) -> tuple[Predictor, ManifestData]:
    """Return the model of the checkpoint, and the table with the processors of the model."""
    predictor = Predictor.from_checkpoint(checkpoint_path(config, config.ckpt_path), config.device, config.trust)
    data = ManifestData(**config.data.as_dict() | {"inputs": predictor.columns | (config.data.inputs or {})})
    set_up_rows(data, predictor, config.data.inputs)
    return predictor, data


def set_up_rows(data: ManifestData, predictor: Predictor, given: Mapping[str, str | list[str]] | None) -> None:
    """Give a table the processors of a model, and check it.

    Args:
        data: the table.
        predictor: the model, some of whose inputs the table may lack.
        given: input name -> column or columns of ``--data.inputs``, all of which the table must have.

    Raises:
        UserError: if the table cannot be read, or lacks a given column or the columns of all inputs.
    """
    lacking = [
        problem for name, columns in (given or {}).items() for problem in check_input_columns(data.table, name, columns)
    ]
    raise_problems(data.manifest, lacking)
    data.processors = predictor.processors
    data.setup("predict")
