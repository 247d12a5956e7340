"""Entry point of ``fusion-pl``; prints help, version and the error for an unknown command without importing torch."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType

from fusion_pl import __version__
from fusion_pl.messages import did_you_mean
from fusion_pl.processes import exit_without_abandoned_threads, without_garbage_collection

HELP = """\
usage: fusion-pl COMMAND [options]

Classify samples that combine text, images and audio.

commands:
  fit       train:      fusion-pl fit --config configs/keypad.yaml
  validate  evaluate on the validation split:
                        fusion-pl validate --config configs/keypad.yaml
  test      evaluate on the test split, with the best checkpoint of the newest run unless --ckpt_path is given:
                        fusion-pl test --config configs/keypad.yaml
  predict   classify the rows of a manifest with a checkpoint alone:
                        fusion-pl predict --ckpt_path best.ckpt --data.manifest new.csv --output predictions.csv
  explain   report why: which inputs, words, parts of a picture and moments of a sound matter:
                        fusion-pl explain --ckpt_path best.ckpt --data.manifest new.csv --output reports/why
  evaluate  write one page about a checkpoint: metrics, calibration, the hardest samples, groups with worse results:
                        fusion-pl evaluate --ckpt_path best.ckpt --data.manifest rows.csv --output reports/best
  serve     answer HTTP requests with predictions, at http://127.0.0.1:8000:
                        fusion-pl serve --ckpt_path best.ckpt
  export    write a model that runs without torch:
                        fusion-pl export --ckpt_path best.ckpt --output exported
  compare   train every fusion head, and every input alone, and report which is best:
                        fusion-pl compare --config configs/keypad.yaml --output reports/keypad
  data check
            open every row and file before training, and report what is damaged, duplicated or cut off:
                        fusion-pl data check --config configs/own.yaml --output reports/check
  data shard
            write a table and its files to a few large files, for clusters and object stores:
                        fusion-pl data shard --config configs/own.yaml --output data/shards

best.ckpt is the checkpoint of a run, such as lightning_logs/keypad/version_0/checkpoints/best.ckpt.

options:
  --help               show this text; after a command: its main options, for the data set in use
  --help-all           after a command: all of its options
  --version            show the version
  --completion bash    print a script that completes commands and options in bash or zsh

Every value of a configuration can be given on the command line. An option overrides the --config files before it, a
--config overrides everything before it, and an option that is given twice is refused:
  fusion-pl fit --config configs/keypad.yaml --trainer.max_epochs 5 --data.batch_size 16
  fusion-pl fit --config configs/keypad.yaml --model.fusion fusion_pl.fusion.CrossAttention
  fusion-pl fit --config configs/keypad.yaml --ckpt_path last        # resume the newest run
"""
IMPORTERS = {"jsonargparse._util", "fusion_pl.config"}  # modules that import classes by their class path
COMMANDS = (
    "fit",
    "validate",
    "test",
    "predict",
    "explain",
    "evaluate",
    "serve",
    "export",
    "compare",
    "data check",
    "data shard",
)


def main() -> int:
    """Run the command and return its exit code, see ``run_reporting_errors``; 2 for an unknown command."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["data"]:  # the first word of a command of two words
        arguments = [" ".join(arguments[:2]), *arguments[2:]]
    if not arguments or arguments[0] in {"-h", "--help", "help", "data", "data -h", "data --help"}:
        return _print_text(HELP)
    subcommand = arguments[0]
    if subcommand in {"-V", "--version"}:
        return _print_text(f"fusion-pl {__version__}\n")
    if subcommand not in (*COMMANDS, "--completion"):
        hint = did_you_mean(subcommand, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        print(f"fusion-pl: error: there is no command {subcommand!r}{hint} (fusion-pl --help)", file=sys.stderr)
        return 2
    if subcommand == "--completion" and arguments[1:] not in ([], ["bash"]):
        shell = " ".join(arguments[1:])
        print(f"fusion-pl: error: --completion {shell}: expected bash; zsh reads the bash script too", file=sys.stderr)
        return 2
    code = _run_subcommand(subcommand, arguments[1:])
    exit_without_abandoned_threads(code)
    return code


def _run_subcommand(subcommand: str, arguments: list[str]) -> int:
    """Import the libraries and run a command."""
    try:
        sys.meta_path.append(CurrentFolderFinder(os.getcwd()))
    except FileNotFoundError:
        print("fusion-pl: error: the current folder has been removed: change to another one", file=sys.stderr)
        return 2
    atexit.register(_skip_garbage_collection)
    # Libraries that are interrupted during their import print their own tracebacks.
    with _exit_on_interrupt(), without_garbage_collection():
        from fusion_pl.cli.run import run, run_reporting_errors

        command: Callable[[list[str]], int | None] | None = None
        if subcommand == "compare":
            from fusion_pl.analysis.compare import compare_command as command
        elif subcommand == "explain":
            from fusion_pl.explain.command import explain_command as command
        elif subcommand == "evaluate":
            from fusion_pl.evaluate.command import evaluate_command as command
        elif subcommand == "serve":
            from fusion_pl.serve.command import serve_command as command
        elif subcommand == "export":
            from fusion_pl.export.command import export_command as command
        elif subcommand == "data check":
            from fusion_pl.data_check.command import check_command as command
        elif subcommand == "data shard":
            from fusion_pl.cli.shard import shard_command as command
        if subcommand == "--completion":
            from fusion_pl.cli.completion import completion_script

            return _print_text(f"{completion_script()}\n")
        if {"-h", "--help", "--help-all"} & set(arguments):
            from fusion_pl.cli.help import help_text

            return _print_text(help_text(subcommand, arguments, everything="--help-all" in arguments) + "\n")
    if command is not None:
        return run_reporting_errors(lambda: command(arguments))
    return run(subcommand, arguments)


class CurrentFolderFinder(MetaPathFinder):
    """Find the modules of class paths in the current folder, which a console script does not have on ``sys.path``.

    Libraries try to import optional packages (``dill``, ``pynvml``, ``tabulate``). A file of the same name in the
    current folder must not be imported in their place, so only imports by the modules in ``IMPORTERS`` search the
    folder. After the first match, the folder is appended to ``sys.path``, for other processes and for the imports of
    the module that was found.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module in the folder that ``IMPORTERS`` import; None for any other import."""
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__", "").startswith("importlib"):
            frame = frame.f_back
        if path is not None or frame.f_globals.get("__name__") not in IMPORTERS:
            return None
        spec = PathFinder.find_spec(fullname, [self.folder], target)
        if spec is not None and self.folder not in sys.path:
            sys.path.append(self.folder)
        return spec


def _print_text(text: str) -> int:
    """Print a text and return the exit code; ignore a pipe that is closed early (``| head``)."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
    return 0


def _skip_garbage_collection() -> None:
    """Skip the garbage collection at exit: it takes a second, during which Ctrl-C prints a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()


@contextmanager
def _exit_on_interrupt() -> Iterator[None]:
    """Exit without a traceback on Ctrl-C while the libraries are imported."""

    def stop(signum: int, frame: FrameType | None) -> None:
        del frame
        os.write(2, b"\nStopped; nothing was saved.\n")
        os._exit(128 + signum)

    previous_handler = signal.getsignal(signal.SIGINT)
    if previous_handler is not signal.default_int_handler:  # a background command, or a caller that handles SIGINT
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous_handler)


if __name__ == "__main__":
    sys.exit(main())
