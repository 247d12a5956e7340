"""The command line of ``fusion-pl compare``."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import NoReturn

from fusion_pl.cli.parsing import refuse_repeated_options
from fusion_pl.messages import did_you_mean
from fusion_pl.types import UserError

DESCRIPTION = """Train heads and single inputs with the same configuration over several seeds, and report the best.
Options of fusion-pl fit (--trainer.max_epochs 5) apply to every run. Repeat the command to resume it."""
# First parts of the options that are passed to fusion-pl fit.
FIT_OPTIONS = ["model", "data", "trainer", "early_stopping", "checkpoint", "optimizer"]
FIT_OPTIONS += ["threads", "keep_memory", "cache", "cache_limit", "cache_dtype"]


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (fusion-pl compare --help)")


def compare_parser() -> ArgumentParser:
    """Return the parser of the options that are not passed to ``fusion-pl fit``."""
    parser = _Parser(prog="fusion-pl compare", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="path of the configuration that all runs share")
    parser.add_argument("--fusions", default="all", help="all, or heads by name or class path: Concat,LowRank (all)")
    parser.add_argument("--inputs", default="each,all", help="all together, each alone (Concat), subsets (Concat)")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs per head (3)")
    parser.add_argument("--output", required=True, help="folder of the runs and of the report")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time, on separate GPUs (1)")
    return parser


def read_arguments(arguments: list[str]) -> tuple[Namespace, list[str]]:
    """Return the options of ``fusion-pl compare``, and the arguments that every ``fusion-pl fit`` gets.

    Raises:
        UserError: If an option is unknown or a value is out of range.
    """
    refuse_repeated_options(arguments, repeatable=())
    parser = compare_parser()
    options, extra = parser.parse_known_args(arguments)
    known = [option.removeprefix("--") for option in parser._option_string_actions]
    for argument in extra:
        name = argument.removeprefix("--").partition("=")[0]
        if argument.startswith("--") and name.partition(".")[0] not in FIT_OPTIONS:
            near = did_you_mean(name, [*known, *FIT_OPTIONS], "--")
            raise UserError(f"there is no option --{name}{near} (fusion-pl compare --help)")
    if options.seeds < 1 or options.jobs < 1:
        raise UserError(f"--seeds is {options.seeds} and --jobs {options.jobs}, expected at least 1")
    return options, extra
