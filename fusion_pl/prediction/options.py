"""Options of ``fusion-pl predict``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fusion_pl.cli.checkpoint_options import TRAINING_OPTIONS, add_checkpoint_option, add_device_options
from fusion_pl.cli.options import cli_options
from fusion_pl.cli.parsing import parse_checkpoint_command
from fusion_pl.data.base import FusionData
from fusion_pl.predict import Predictor
from fusion_pl.prediction.formats import FORMATS
from fusion_pl.prediction.selection import Method
from fusion_pl.types import UserError

STANDARD = "-"  # name of the standard input as a table, and of the standard output
# Options of streams and shards that concern training.
STREAM_OPTIONS = {"shuffle_buffer", "shuffle_window"}
TABLE_OPTIONS = {"data", "columns", "select", "by", "overwrite", "trainer.devices"}  # not of one sample


def predict_parser(has_table: bool = True) -> ArgumentParser:
    """Return the parser of ``fusion-pl predict``, for the rows of a table, or for one sample."""
    parser = ArgumentParser(prog="fusion-pl predict", exit_on_error=False, allow_abbrev=False)
    add_checkpoint_option(parser)
    parser.add_argument(
        "--output",
        type=str,
        required=has_table,
        help="the .csv, .jsonl or .parquet file to write, or - for JSON Lines on the standard output",
    )
    parser.add_argument(
        "--input",
        type=str,
        action="append",
        default=[],
        help="an input of a single sample, such as text='a cat' or image=cat.jpg, once for each input; needs no table",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an output file that exists, and begin anew if other options were used before",
    )
    parser.add_argument(
        "--columns",
        type=list[str] | str,
        default=[],
        help="columns of the table to copy to the output, separated by commas, such as text,split",
    )
    parser.add_argument(
        "--embeddings", action="store_true", help="add the fused embedding of each sample, a list of numbers"
    )
    parser.add_argument(
        "--select",
        type=int | None,
        help="number of rows to write, those most worth labelling, most useful first; rows with a label are left out",
    )
    parser.add_argument(
        "--by",
        type=Method,
        default="margin",
        help="how --select chooses: margin (smallest margin of the two best classes), bald (disagreement of draws of "
        "dropout) or coreset (farthest from the labelled and chosen rows)",
    )
    parser.add_method_arguments(Predictor, "rules")
    add_device_options(parser)
    parser.add_argument(
        "--trainer.devices",
        type=int,
        default=1,
        help="number of processes, each with a range of the rows, on its own GPU or its share of the cores",
    )
    parser.add_subclass_arguments(FusionData, "data", skip=TRAINING_OPTIONS | STREAM_OPTIONS)
    if has_table:
        parser.set_defaults({"data": {"class_path": "fusion_pl.data.ManifestData"}})
    return parser


def parse_options(arguments: Sequence[str]) -> Namespace:
    """Parse the command line.

    Raises:
        UserError: if an option is wrong, or the output cannot or must not be written.
    """
    keys = [key for key, _ in cli_options(arguments)]
    is_sample, has_table = "input" in keys, any(key.partition(".")[0] == "data" for key in keys)
    if is_sample:
        _check_sample(keys)
    parser = predict_parser(has_table and not is_sample)
    config = parse_checkpoint_command(parser, arguments, with_data_class=True, repeatable=("input",))
    if is_sample:
        if config.output not in (None, STANDARD):
            raise UserError("--input is one sample, whose prediction is printed: leave out --output")
        return config
    if not has_table:
        raise UserError("give a table with --data.manifest, or one sample with --input, such as --input text='a cat'")
    if config.select is not None:
        _check_selection(config)
    elif "by" in keys:
        raise UserError("--by is how --select chooses rows: give --select too, or leave it out")
    if config.output == STANDARD:
        if config.trainer.devices != 1:
            raise UserError("--output - is written by one process: leave out --trainer.devices, or give a file")
    else:
        check_output(Path(config.output), config.overwrite, config.data.init_args.get("manifest"))
    return config


def _check_sample(keys: Sequence[str]) -> None:
    """Raise an error for an option of tables beside ``--input``."""
    for key in keys:
        if key.startswith("data.") or key in TABLE_OPTIONS:
            raise UserError(f"--input is one sample, and --{key} belongs to a table: give one of the two")


def _check_selection(config: Namespace) -> None:
    """Raise an error for options that do not go with ``--select``."""
    if config.select < 1:
        raise UserError(f"--select is {config.select}, expected a number of rows of at least 1")
    if config.output == STANDARD or config.trainer.devices != 1:
        given = "--output -" if config.output == STANDARD else "--trainer.devices"
        raise UserError(f"--select compares all rows in one process and writes a file: leave out {given}")


def check_output(output: Path, overwrite: bool, manifest: str | None = None) -> None:
    """Raise an error, before the model is loaded, if the output file cannot or must not be written."""
    if output.suffix.lower() not in FORMATS:
        raise UserError(
            f"--output {output} ends in {output.suffix!r}: predictions are written as .csv, .jsonl or .parquet"
        )
    if not output.absolute().parent.is_dir():
        folder = output.parent
        raise UserError(f"--output {output}: the folder {folder} does not exist: create it, or give another --output")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: give the path of a file")
    if output.exists():
        if manifest and Path(manifest).exists() and output.samefile(manifest):
            raise UserError(f"--output {output} is the manifest itself: give it another name")
        if not overwrite:
            raise UserError(f"--output {output} exists: pass --overwrite to replace it, or another --output")
