"""Reads models from a folder or from Hugging Face's hub, and says in one sentence what is missing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fusion_pl.encoders.embedded import UNNEEDED, travels, without_code
from fusion_pl.messages import is_failure, reason
from fusion_pl.types import MissingFileError, UserError

ReadT = TypeVar("ReadT")


def locate(pretrained: str) -> str:
    """Tell a folder from a hub name.

    Returns:
        the folder's path, or the name as it was given.

    Raises:
        MissingFileError: where it can only be a folder and is none, or holds no ``config.json``.
    """
    path = Path(pretrained).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MissingFileError(
                f"pretrained: the folder {pretrained} holds no config.json: point at what save_pretrained "
                f"wrote, or fetch a model with `hf download NAME --local-dir {pretrained}`"
            )
        return str(path)
    if path.is_absolute() or pretrained.startswith((".", "~")) or len(path.parts) != len(pretrained.split("/")) <= 2:
        raise MissingFileError(
            f"pretrained: there is no folder {pretrained}: check the path, or fetch a model into it with "
            f"`hf download NAME --local-dir {pretrained}`"
        )
    return pretrained


def read(reader: Callable[..., ReadT], source: str, what: str, **options: Any) -> ReadT:
    """Call a ``from_pretrained``, quietly; its many ways of failing become one sentence, and no code of a model runs.

    Args:
        reader: of a transformers class.
        source: what ``locate`` returned.
        what: is read, in words, such as "tokenizer".
        **options: for ``reader``.

    Raises:
        UserError: where the files are not there, or this transformers does not know them.
    """
    try:
        with quiet(bars=not Path(source).is_dir()):  # a download is worth a bar, reading a folder is not
            return reader(source, trust_remote_code=False, **options)
    except UserError:
        raise
    except BaseException as error:  # tokenizers raises bare Exceptions and panics
        if not is_failure(error):
            raise
        said = "it needs code of its own, which is never run" if "custom code" in str(error) else reason(error)
        if Path(source).is_dir():
            raise MissingFileError(f"pretrained: no {what} could be read from the folder {source}: {said}") from error
        raise UserError(
            f"pretrained: the {what} of {source} is neither in a folder of that name nor in Hugging Face's cache, and "
            f"could not be downloaded: where there is a connection, run `hf download {source} --local-dir FOLDER`, "
            f"then set pretrained: FOLDER ({said})"
        ) from error


@contextmanager
def offline() -> Iterator[None]:
    """Keep transformers from contacting the hub, whatever a configuration names."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Keep transformers' load report to itself: it lists heads that an encoder leaves out on purpose."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hidden_layers = logging.get_verbosity(), hub_logging.get_verbosity()
    had_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    hub_logging.set_verbosity(logging.ERROR)
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(hidden_layers[0])
        hub_logging.set_verbosity(hidden_layers[1])
        if had_bars:
            logging.enable_progress_bar()


def saved(part: Any) -> dict[str, bytes]:
    """Return what a configuration, tokenizer or processor writes when it is saved: file name -> content.

    Raises:
        UserError: for a file that checkpoints do not carry, without which the model could not be built again.
    """
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            part.save_pretrained(folder)
        paths = [path for path in sorted(Path(folder).iterdir()) if path.is_file() and path.name not in UNNEEDED]
        for path in paths:
            if not travels(path.name):
                raise UserError(
                    f"pretrained: {type(part).__name__} needs the file {path.name}, which a checkpoint does not carry, "
                    "so that the trained model could not be read again: choose a model with a tokenizer.json"
                )
        return {path.name: without_code(path.name, path.read_bytes()) for path in paths}
