"""Read models from a folder or from the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fusion_pl.encoders.saved_files import IGNORED_FILES, is_allowed_file, remove_code_references
from fusion_pl.messages import error_reason, is_failure
from fusion_pl.types import MissingFileError, UserError

ReadT = TypeVar("ReadT")


def resolve_source(pretrained: str) -> str:
    """Check a folder, or the name of a model on the hub.

    Returns:
        The path of the folder with ``~`` expanded, or the name of the model unchanged.

    Raises:
        MissingFileError: if the folder does not exist, or has no ``config.json``.
    """
    path = Path(pretrained).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MissingFileError(
                f"pretrained: the folder {pretrained} contains no config.json: give a folder that save_pretrained "
                f"wrote, or download a model with `hf download NAME --local-dir {pretrained}`"
            )
        return str(path)
    if path.is_absolute() or pretrained.startswith((".", "~")) or len(path.parts) != len(pretrained.split("/")) <= 2:
        raise MissingFileError(
            f"pretrained: there is no folder {pretrained}: check the path, or download a model to this folder with "
            f"`hf download NAME --local-dir {pretrained}`"
        )
    return pretrained


def read_pretrained(reader: Callable[..., ReadT], source: str, part_name: str, **options: Any) -> ReadT:
    """Call ``from_pretrained`` without logging and without remote code, and convert any error to a ``UserError``.

    Args:
        reader: ``from_pretrained`` method of a transformers class.
        source: result of ``resolve_source``.
        part_name: name of the part that is read, such as "tokenizer", for messages.
        **options: keyword arguments of ``reader``.

    Raises:
        UserError: if the files do not exist, or this version of transformers does not support them.
    """
    try:
        with quiet_transformers(show_progress_bars=not Path(source).is_dir()):  # a progress bar for downloads only
            return reader(source, trust_remote_code=False, **options)
    except UserError:
        raise
    except BaseException as error:  # tokenizers raises bare Exceptions and panics
        if not is_failure(error):
            raise
        cause = (
            "it needs custom code from its repository, which is never run"
            if "custom code" in str(error)
            else error_reason(error)
        )
        if Path(source).is_dir():
            raise MissingFileError(
                f"pretrained: no {part_name} could be read from the folder {source}: {cause}"
            ) from error
        raise UserError(
            f"pretrained: the {part_name} of {source} is neither in a folder of that name nor in Hugging Face's cache, "
            f"and could not be downloaded: on a machine with a connection, run `hf download {source} --local-dir "
            f"FOLDER`, then set pretrained: FOLDER ({cause})"
        ) from error


@contextmanager
def hub_offline() -> Iterator[None]:
    """Prevent transformers from contacting the hub."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet_transformers(show_progress_bars: bool = False) -> Iterator[None]:
    """Suppress the log messages of transformers, such as the list of model weights that an encoder does not use."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    bars_enabled = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    hub_logging.set_verbosity(logging.ERROR)
    if not show_progress_bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars_enabled:
            logging.enable_progress_bar()


def serialize_files(part: Any) -> dict[str, bytes]:
    """Return the files of a configuration, tokenizer or processor: file name -> content.

    Raises:
        UserError: for a file that a checkpoint cannot store.
    """
    with tempfile.TemporaryDirectory() as folder:
        with quiet_transformers():
            part.save_pretrained(folder)
        paths = [path for path in sorted(Path(folder).iterdir()) if path.is_file() and path.name not in IGNORED_FILES]
        for path in paths:
            if not is_allowed_file(path.name):
                raise UserError(
                    f"pretrained: {type(part).__name__} needs the file {path.name}, which a checkpoint cannot store: "
                    "choose a model with a tokenizer.json, so that the trained model can be loaded"
                )
        return {path.name: remove_code_references(path.name, path.read_bytes()) for path in paths}
