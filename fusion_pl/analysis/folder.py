"""The folder of a comparison: which runs are in it, and which of them belong together."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fusion_pl.analysis.content import difference
from fusion_pl.analysis.plan import Trial
from fusion_pl.analysis.result import Result
from fusion_pl.types import UserError

RESULT = "result.json"
SHOWN = 3  # names of runs in a sentence
Expected = Callable[[Result], Trial | None]


def folder_of(output: Path, trial: Trial) -> Path:
    """Return where a trial's files are: a folder of its name, or a new one where another run's result is in that.

    Args:
        output: folder of the comparison.
        trial: to run, or to look for.
    """
    usual = output / "runs" / trial.name
    if not (usual / RESULT).exists():
        return usual
    found = _read(usual / RESULT)
    if found is not None and found.config == trial.key:
        return usual
    return usual.with_name(f"{trial.name}-{hashlib.sha256(trial.key.encode()).hexdigest()[:8]}")


def result_of(output: Path, trial: Trial) -> Result | None:
    """Return what an earlier run of the same trial found; None where there is none, or it failed."""
    found = _read(folder_of(output, trial) / RESULT)
    return found if found is not None and found.status == "done" and found.config == trial.key else None


@dataclass
class Kept:
    """What is in a folder besides the runs that were asked for.

    Attributes:
        same: results of earlier selections, with the same configuration, table and library versions.
        others: in what they differ -> folders of runs that belong to other comparisons.
    """

    same: list[Result] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __str__(self) -> str:
        """Say what is kept without being compared; empty where there is nothing."""
        parts = []
        for what, names in self.others.items():
            shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            parts.append(f"{len(names)} {'run' if len(names) == 1 else 'runs'} of {what} ({shown})")
        return f"Kept in runs/, and not in this report: {'; '.join(parts)}." if parts else ""


def kept(output: Path, expected: Expected) -> Kept:
    """Return what a folder holds.

    Args:
        output: folder of the comparison.
        expected: returns the trial that a result would be of in this comparison; None where it can be of none.
    """
    found = Kept()
    for path in sorted(output.glob(f"runs/*/{RESULT}")):
        result = _read(path)
        if result is None:
            found.others["another version of fusion-pl, or damaged"].append(path.parent.name)
            continue
        trial = expected(result)
        if trial is not None and trial.key == result.config:
            found.same.append(result)
            continue
        differs = difference(trial.key, result.config) if trial else "another configuration"
        found.others[differs or "another version of fusion-pl"].append(path.parent.name)
    return found


def _read(path: Path) -> Result | None:
    """Return a result, or None where there is none, or this version cannot read it."""
    try:
        return Result.read(path)
    except (UserError, OSError):
        return None
