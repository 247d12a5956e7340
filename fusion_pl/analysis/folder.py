"""The folder of a comparison: where each run's files are, and which stored results belong together."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from fusion_pl.analysis.keys import key_difference
from fusion_pl.analysis.plan import Run
from fusion_pl.analysis.result import RunResult
from fusion_pl.types import UserError

RESULT = "result.json"
MAX_NAMES = 3  # names of runs in a message


def run_path(output: Path, run: Run) -> Path:
    """Return the folder of a run: named after it, with a suffix if that folder contains the result of another run."""
    path = output / "runs" / run.name
    result = _read(path / RESULT)
    if (result and result.key == run.key) or not (path / RESULT).exists():
        return path
    return path.with_name(f"{run.name}-{hashlib.sha256(run.key.encode()).hexdigest()[:8]}")


def finished_result(output: Path, run: Run) -> RunResult | None:
    """Return the stored result of a run; None if there is none, or it failed."""
    result = _read(run_path(output, run) / RESULT)
    return result if result and result.status == "done" and result.key == run.key else None


def stored_results(output: Path, matching_run: Callable[[RunResult], Run | None]) -> tuple[list[RunResult], str]:
    """Read all results in a folder.

    Args:
        output: folder of the comparison.
        matching_run: returns the run of this comparison with the same head, inputs and seed as a result; None if there
            is none.

    Returns:
        The results with the configuration, table and library versions of this comparison, and a sentence on the others,
        empty if there are none.
    """
    comparable: list[RunResult] = []
    excluded: dict[str, list[str]] = defaultdict(list)  # difference -> names of run folders
    for path in sorted(output.glob(f"runs/*/{RESULT}")):
        result = _read(path)
        if result is None:
            excluded["another version of fusion-pl, or damaged"].append(path.parent.name)
            continue
        run = matching_run(result)
        if run is not None and run.key == result.key:
            comparable.append(result)
            continue
        difference = key_difference(run.key, result.key) if run else "another configuration"
        excluded[difference or "another version of fusion-pl"].append(path.parent.name)
    parts = []
    for difference, names in excluded.items():
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        runs = "run" if len(names) == 1 else "runs"
        parts.append(f"{len(names)} {runs} of {difference} ({', '.join(names[:MAX_NAMES])}{more})")
    return comparable, f"Kept in runs/, and not in this report: {'; '.join(parts)}." if parts else ""


def _read(path: Path) -> RunResult | None:
    """Return a result; None if there is none, or this version cannot read it."""
    try:
        return RunResult.read(path)
    except (UserError, OSError):
        return None
