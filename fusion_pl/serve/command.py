"""``fusion-pl serve``, which answers requests over HTTP with the predictions of a checkpoint."""

from __future__ import annotations

import math
import os
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from fusion_pl.cli.checkpoint_options import RULES, add_checkpoint_option, add_device_options, checkpoint_path
from fusion_pl.cli.parsing import parse_checkpoint_command
from fusion_pl.extras import check_extra
from fusion_pl.predict import Predictor
from fusion_pl.serve.limits import Limits
from fusion_pl.training.interrupt import StopSignals
from fusion_pl.types import MissingFileError, UserError

TOKEN_VARIABLE = "FUSION_PL_TOKEN"
TOKEN_ADVICE = "write a token of at least 16 ASCII characters into a file, and give its path"
WINDOW = 1000  # samples of all processes


def serve_parser() -> ArgumentParser:
    """Return the parser of ``fusion-pl serve``."""
    parser = ArgumentParser(prog="fusion-pl serve", exit_on_error=False, allow_abbrev=False)
    add_checkpoint_option(parser)
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on (0.0.0.0 = all addresses)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (0 = any free port)")
    parser.add_argument(
        "--allowed_hosts",
        type=str,
        default=[],
        nargs="*",
        help="further hosts to answer requests to (*.example.com, * = all); localhost, 127.0.0.1 and [::1] are always "
        "allowed, and without this option all hosts if the server listens on another address",
    )
    parser.add_argument(
        "--token_file",
        type=str | None,
        default=None,
        help="file with the token (16 characters or more) that clients have to send; the environment variable "
        f"{TOKEN_VARIABLE} is another way to give it",
    )
    parser.add_argument("--workers", type=int, default=1, help="number of processes, each with its own model")
    parser.add_argument("--batch_size", type=int, default=32, help="largest number of samples per batch")
    parser.add_argument("--max_wait", type=float, default=5.0, help="milliseconds that a sample waits for others")
    parser.add_argument("--queue", type=int, default=64, help="accepted requests per process (others are answered 429)")
    parser.add_argument(
        "--reference",
        action="store_true",
        help="compare served with validation samples on /drift and in /metrics",
    )
    parser.add_argument(
        "--window",
        type=int | None,
        default=None,
        help=f"latest samples that --reference compares (by default {WINDOW:,})",
    )
    parser.add_argument("--page", action="store_true", help="serve also a page to try the model in a browser")
    parser.add_argument(
        "--examples",
        type=str | None,
        default=None,
        help="table with examples for the page, with the columns of the training table",
    )
    parser.add_class_arguments(Limits, "limits")
    parser.add_method_arguments(Predictor, "rules")
    add_device_options(parser)
    return parser


@StopSignals().handle_signals()
def serve_command(arguments: list[str]) -> int:
    """Run ``fusion-pl serve`` until it is stopped; return 0 after Ctrl-C or SIGTERM."""
    config = parse_checkpoint_command(serve_parser(), arguments)
    check_extra("serve", "fusion-pl serve needs", "starlette", "uvicorn", "python_multipart", "prometheus_client")
    from fusion_pl.serve.hosts import allowed_hosts
    from fusion_pl.serve.processes import listen, run_server
    from fusion_pl.serve.service import ServeOptions

    _check_numbers(config)
    if config.examples is not None and not config.page:
        raise UserError("--examples gives examples for the page: add --page")
    path, token = checkpoint_path(config, config.ckpt_path), read_token(config.token_file)
    with listen(config.host, config.port) as socket:
        options = ServeOptions(
            path,
            config.device,
            tuple(config.trust),
            {name: config[name] for name in RULES},
            Limits(**config.limits.as_dict()),
            config.batch_size,
            config.max_wait / 1000,
            config.queue,
            token,
            allowed_hosts(socket.getsockname()[0], config.allowed_hosts),
            window=math.ceil((config.window or WINDOW) / config.workers) if config.reference else None,
            page=config.page,
            examples=config.examples,
        )
        return run_server(options, socket, config.workers)


def _check_numbers(config: Namespace) -> None:
    if config.window is not None and not config.reference:
        raise UserError("--window is the number of samples that --reference compares: pass --reference as well")
    for name, low, high in (
        *(("workers", 1, 1024), ("batch_size", 1, 65_536), ("queue", 1, 65_536)),
        *(("port", 0, 65_535), ("max_wait", 0, 60_000), ("window", 1, 100_000)),
    ):
        if config[name] is not None and not low <= config[name] <= high:
            raise UserError(f"--{name} is {config[name]}, expected a number from {low} to {high}")


def read_token(path: str | None) -> str | None:
    """Return the token of a file or of the environment; None without both.

    Raises:
        MissingFileError: if the file does not exist.
        UserError: if there are both, the file cannot be read, or the token is empty or not ASCII.
    """
    token, source = os.environ.get(TOKEN_VARIABLE), f"the environment variable {TOKEN_VARIABLE}"
    if path is not None:
        if token is not None:
            raise UserError(f"--token_file and {source} both give a token: remove one of them")
        source = f"--token_file {path}"
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except FileNotFoundError as error:
            raise MissingFileError(f"{source} does not exist: {TOKEN_ADVICE}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{source} cannot be read as a text: {TOKEN_ADVICE}") from error
    if token is not None and (not token.isascii() or not token.isprintable() or len(token) < 16 or " " in token):
        raise UserError(f"the token of {source} must have at least 16 ASCII characters without spaces")
    return token
