"""``fusion-pl export``, which writes a folder with which a model runs without its checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser
from rich.console import Console

from fusion_pl.cli.checkpoint_options import add_checkpoint_option, add_loading_options, checkpoint_path
from fusion_pl.cli.parsing import parse_checkpoint_command
from fusion_pl.export.onnx_model import check_onnx, write_onnx
from fusion_pl.files import PARTIAL
from fusion_pl.messages import escape_unprintable
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor
from fusion_pl.training.interrupt import StopSignals
from fusion_pl.types import UserError

Format = Literal["onnx"]
WRITERS: dict[Format, Callable[[FusionClassifier, Path], None]] = {"onnx": write_onnx}


def export_parser() -> ArgumentParser:
    """Return the parser of ``fusion-pl export``."""
    parser = ArgumentParser(prog="fusion-pl export", exit_on_error=False, allow_abbrev=False)
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=str, required=True, help="folder to write, which does not exist yet")
    parser.add_argument(
        "--format",
        type=Format,
        default="onnx",
        help="onnx: a file for onnxruntime and a program that runs it, without torch",
    )
    add_loading_options(parser)
    return parser


@StopSignals().handle_signals()
def export_command(arguments: list[str]) -> int:
    """Run ``fusion-pl export``."""
    config = parse_checkpoint_command(export_parser(), arguments)
    output = Path(config.output)
    check_output(output)
    if config.format == "onnx":
        check_onnx()
    path = checkpoint_path(config, config.ckpt_path)
    predictor = Predictor.from_checkpoint(path, "cpu", config.trust)
    with atomic_folder(output) as folder:
        WRITERS[config.format](predictor.model, folder)
    files = [f"{file.name} ({file.stat().st_size / 1e6:.1f} MB)" for file in sorted(output.iterdir())]
    text = f"{path} is exported to {output}: {', '.join(files)}"
    Console(stderr=True).print(escape_unprintable(text), highlight=False, markup=False, soft_wrap=True)
    return 0


def check_output(output: Path) -> None:
    """Raise a ``UserError`` if a folder cannot be written, before the model is loaded."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output {output} exists: give a folder that does not exist yet, or remove it")
    if any(parent.is_file() for parent in output.parents):
        raise UserError(f"--output {output} lies below a file: give a folder")


@contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to ``output`` if the block succeeds, and removed otherwise."""
    partial = output.with_name(output.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
