"""Why calibration does not halve every calibration error: other methods, and temperatures fitted on the test split.

For each input alone, on test: the calibration error without calibration, with the temperature of validation, with that
of the test split itself (the best that a temperature can do, without a shift between the splits), and with vector
scaling of validation; each with the error of a perfectly calibrated model with the same probabilities.

    fusion-pl fit --config configs/keypad.yaml --seed_everything 0   # and 1, 2
    python -m benchmarks.calibration_limits lightning_logs/keypad/version_*/checkpoints/best.ckpt
                                            [--config configs/keypad.yaml] [--data FOLDER]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.calibration import mean, print_header, print_row
from benchmarks.digits import read_config
from benchmarks.outliers import Run
from fusion_pl.metrics import chance_calibration_error
from fusion_pl.tasks import Task
from fusion_pl.uncertainty.calibration import Outputs, calibration_scores
from fusion_pl.uncertainty.calibration_fit import minimise_nll


def measure(run: Run, name: str) -> dict[str, tuple[float, float, float]]:
    """Return method -> calibration error, error by chance, both in %, and NLL on test, with one input alone."""
    task: Task = run.predictor.task
    parts = {}
    for split in ("val", "test"):
        found = run.outputs(run.samples(split), (name,))
        rows = found[f"present/{name}"]
        parts[split] = Outputs(found["logits"][rows], found["target"][rows], rows[rows].unsqueeze(1), rows[rows])
    size, logits = parts["val"].logits.shape[1], parts["test"].logits.double()
    fits = {
        "none": (torch.ones(1).double(), torch.zeros(1).double()),
        "temperature": minimise_nll(task, parts["val"], 1),
        "temperature of test": minimise_nll(task, parts["test"], 1),
        "vector": minimise_nll(task, parts["val"], size),
    }
    return {
        method: scores(task, logits * scale + shift, parts["test"].target) for method, (scale, shift) in fits.items()
    }


def scores(task: Task, logits: Tensor, target: Tensor) -> tuple[float, float, float]:
    found = calibration_scores(task, logits, target)
    confidences, _ = task.confidences(task.probabilities(logits), target)
    return 100 * found["ece"], 100 * chance_calibration_error(confidences), found["nll"]


def main() -> None:
    """Print a row per input and method: mean ± sd over the checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--config", default="configs/keypad.yaml")
    parser.add_argument("--data", metavar="FOLDER")
    args = parser.parse_args()
    runs = [Run.open(read_config(args.config, args.data), path) for path in args.checkpoints]
    print_header("data, input", "calibration", "ECE in %", "by chance", "NLL")
    for name in runs[0].predictor.processors:
        measured = [measure(run, name) for run in runs]
        for method in measured[0]:
            columns = zip(*(found[method] for found in measured), strict=True)
            cells = [mean(values, digits) for values, digits in zip(columns, (1, 1, 3), strict=True)]
            print_row(f"{Path(args.config).stem}, {name}", method, *cells)


if __name__ == "__main__":
    main()
