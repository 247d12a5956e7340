"""The folder of a comparison, which contains the folder and the stored result of each run."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from fusion_pl.analysis.keys import describe_key_difference
from fusion_pl.analysis.plan import Run
from fusion_pl.analysis.result import RunResult
from fusion_pl.types import UserError

RESULT_FILE = "result.json"
MAX_RUN_NAMES = 3  # maximum number of run names in a message


def run_path(output: Path, run: Run) -> Path:
    """Return the folder of a run; it has a suffix if the folder without suffix contains the result of another run."""
    path = output / "runs" / run.name
    result = _read_result(path / RESULT_FILE)
    if (result and result.key == run.key) or not (path / RESULT_FILE).exists():
        return path
    return path.with_name(f"{run.name}-{hashlib.sha256(run.key.encode()).hexdigest()[:8]}")


def load_finished_result(output: Path, run: Run) -> RunResult | None:
    """Return the stored result of a finished run; None if there is no result or the run failed."""
    result = _read_result(run_path(output, run) / RESULT_FILE)
    return result if result and result.status == "done" and result.key == run.key else None


def read_comparable_results(
    output: Path, matching_run: Callable[[RunResult], Run | None]
) -> tuple[list[RunResult], str]:
    """Read all results in the folder of a comparison.

    Args:
        output: Folder of the comparison.
        matching_run: Function that returns the planned run with the same head, inputs and seed as a result, or None.

    Returns:
        The results whose configuration, table and library versions match this comparison, and a sentence about the
        excluded results; an empty string if no result is excluded.
    """
    comparable: list[RunResult] = []
    excluded: dict[str, list[str]] = defaultdict(list)  # difference -> names of run folders
    for path in sorted(output.glob(f"runs/*/{RESULT_FILE}")):
        result = _read_result(path)
        if result is None:
            excluded["another version of fusion-pl, or damaged"].append(path.parent.name)
            continue
        run = matching_run(result)
        if run is not None and run.key == result.key:
            comparable.append(result)
            continue
        difference = describe_key_difference(run.key, result.key) if run else "another configuration"
        excluded[difference or "another version of fusion-pl"].append(path.parent.name)
    parts = []
    for difference, names in excluded.items():
        more = f" and {len(names) - MAX_RUN_NAMES} more" if len(names) > MAX_RUN_NAMES else ""
        runs = "run" if len(names) == 1 else "runs"
        parts.append(f"{len(names)} {runs} of {difference} ({', '.join(names[:MAX_RUN_NAMES])}{more})")
    return comparable, f"Kept in runs/, and not in this report: {'; '.join(parts)}." if parts else ""


def _read_result(path: Path) -> RunResult | None:
    """Read a result; None if the file does not exist or this version cannot read it."""
    try:
        return RunResult.read(path)
    except (UserError, OSError):
        return None
