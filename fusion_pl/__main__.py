"""The command ``fusion-pl``: answers help, version and slips at once; the rest waits for the libraries to load."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType

from fusion_pl import __version__

HELP = """\
usage: fusion-pl VERB [options]

Classify things that come as text, images and sound together.

verbs:
  fit       train:      fusion-pl fit --config configs/keypad.yaml
  validate  measure on the validation split:
                        fusion-pl validate --config configs/keypad.yaml
  test      measure on the test split, with the best checkpoint of the newest run unless --ckpt_path names one:
                        fusion-pl test --config configs/keypad.yaml
  predict   classify the rows of a manifest with a checkpoint alone:
                        fusion-pl predict --ckpt_path best.ckpt --data.manifest new.csv --output predictions.csv
  compare   train every fusion head, and every input alone, and report which is best:
                        fusion-pl compare --config configs/keypad.yaml --output reports/keypad

options:
  --help               show this text; after a subcommand: its main options, for the data set in use
  --help-all           after a subcommand, all of its options
  --version            show the version
  --completion bash    print a script that completes verbs and options in bash or zsh

Every value of a configuration can be given on the command line, later ones win:
  fusion-pl fit --config configs/keypad.yaml --trainer.max_epochs 5 --data.batch_size 16
  fusion-pl fit --config configs/keypad.yaml --model.fusion fusion_pl.fusion.CrossAttention
  fusion-pl fit --config configs/keypad.yaml --ckpt_path last        # go on where a run stopped
"""
RESOLVERS = {"jsonargparse._util", "fusion_pl.config"}  # modules that import what a class path names
VERBS = ("fit", "validate", "test", "predict", "compare")


def main() -> int:
    """Run the command and return its exit code: 0, or 2 for what the user can fix."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        return _show(HELP)
    subcommand = arguments[0]
    if subcommand in {"-V", "--version"}:
        print(f"fusion-pl {__version__}")
        return 0
    if subcommand not in (*VERBS, "--completion"):
        import difflib

        close = difflib.get_close_matches(subcommand, VERBS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the verbs are {', '.join(VERBS)}"
        print(f"fusion-pl: error: there is no subcommand {subcommand!r}; {hint} (fusion-pl --help)", file=sys.stderr)
        return 2
    if subcommand == "--completion" and arguments[1:] not in ([], ["bash"]):
        given = " ".join(arguments[1:])
        print(f"fusion-pl: error: --completion {given}: scripts are for bash only (zsh takes it, too)", file=sys.stderr)
        return 2
    return _run(subcommand, arguments[1:])


def _run(subcommand: str, arguments: list[str]) -> int:
    """Run what needs the libraries."""
    try:
        sys.meta_path.append(CurrentFolder(os.getcwd()))
    except FileNotFoundError:
        print("fusion-pl: error: the current folder has been removed: change to another one", file=sys.stderr)
        return 2
    atexit.register(_leave)
    with _stopped_at_once():  # libraries that are interrupted while they load say all kinds of things
        from fusion_pl.cli.run import guarded, run

        if subcommand == "compare":
            from fusion_pl.analysis.compare import compare_command
        if (answer := _answer(subcommand, arguments)) is not None:
            return _show(f"{answer}\n")
    if subcommand == "compare":
        return guarded(lambda: compare_command(arguments))
    return run(subcommand, arguments)


class CurrentFolder(MetaPathFinder):
    """Find modules of the user's folder where a class path is resolved, which a script has not on its path.

    Libraries import what may be installed or not (``dill``, ``pynvml``, ``tabulate``): a file of that name that lies
    in the folder is not meant. From the first class on that is found there, the folder is searched last, as by any
    program of the user's, since the class's module and other processes import what lies beside it.

    Args:
        folder: absolute.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's place, or None where it is not there or not for this finder to say."""
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__", "").startswith("importlib"):
            frame = frame.f_back
        if path is not None or frame.f_globals.get("__name__") not in RESOLVERS:
            return None
        found = PathFinder.find_spec(fullname, [self.folder], target)
        if found is not None and self.folder not in sys.path:
            sys.path.append(self.folder)
        return found


def _show(text: str) -> int:
    """Print a text; a reader that has seen enough of it (``| head``) is no mistake."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
    return 0


def _answer(subcommand: str, arguments: list[str]) -> str | None:
    """Return what a command asks for that runs nothing: help, or the script that completes."""
    if subcommand == "--completion":
        from fusion_pl.cli.completion import completion

        return completion()
    if {"-h", "--help", "--help-all"} & set(arguments):
        from fusion_pl.cli.help import text

        return text(subcommand, arguments, everything="--help-all" in arguments)
    return None


def _leave() -> None:
    """End at once: to look for garbage among all that was imported takes a second, in which Ctrl-C may still come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()


@contextmanager
def _stopped_at_once() -> Iterator[None]:
    """End without a word of Python's at Ctrl-C; nothing is open yet."""

    def stop(signum: int, frame: FrameType | None) -> None:
        del frame
        os.write(2, b"\nStopped; nothing was saved.\n")
        os._exit(128 + signum)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # a command in the background, or a caller that has its own way
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
