"""Calibration, prediction sets, abstention and detection of outliers, measured on test over several seeds.

Runs ``fusion-pl fit`` and ``fusion-pl test`` with each configuration. The calibration is fitted on validation only.
*By chance* is the calibration error of a perfectly calibrated model with the same probabilities.

    python -m benchmarks.calibration [--configs configs/keypad.yaml configs/ask.yaml configs/digits.yaml] [--seeds 3]
                                     [--data FOLDER] [--method temperature]

``--data FOLDER``: the data set of ``configs/digits.yaml`` is the ``manifest.csv`` of this folder.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.digits import read_config
from benchmarks.divisions import measure_divisions
from benchmarks.outliers import Run, measure_outliers

CALIBRATION = ["ECE in %", "by chance", "ECE calibrated", "by chance", "NLL", "NLL calibrated", "change of NLL"]
DECISIONS = ["coverage of sets in %", "mean size", "AURC in %", "accuracy of the surest 70 %", "accuracy of all"]
DIVISIONS = ["coverage in %, mean", "smallest", "largest", "mean size", "divisions below the interval", "above"]

OUTLIERS = ["AUROC in %", "FPR at 95 % TPR in %", "false alarms in %", "found in %"]


def fit_and_test(config: dict, seed: int, method: str, folder: Path) -> dict:
    """Return the results of ``fusion-pl test``, and of the other measurements with the same model."""
    path = folder / "config.yaml"
    config["trainer"]["logger"]["init_args"] |= {"save_dir": str(folder), "name": "run"}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    options = ["--config", str(path), "--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
    for command in ("fit", "test"):
        arguments = [command, *options, "--model.calibration", method]
        subprocess.run([sys.executable, "-m", "fusion_pl", *arguments], check=True, capture_output=True)
    run = Run.open(config, folder / "run/version_0/checkpoints/best.ckpt")
    measured = {"outliers": measure_outliers(run), "divisions": measure_divisions(run)}
    return json.loads((folder / "run/version_1/metrics.json").read_text()) | measured


def mean(values: Sequence[float], digits: int) -> str:
    """Return mean ± sd."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}"


def print_row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def print_header(*names: str) -> None:
    print()
    print_row(*names)
    print("|" + " --- |" * len(names))


def print_calibration(name: str, runs: list[dict]) -> None:
    """Print a row of one subset of the inputs."""
    before, after = ([run[moment] for run in runs] for moment in ("before", "after"))
    cells = [
        mean([100 * scores[key] for scores in scores_of_moment], 1)
        for scores_of_moment in (before, after)
        for key in ("ece", "ece_by_chance")
    ]
    nll = [[scores["nll"] for scores in scores_of_moment] for scores_of_moment in (before, after)]
    change = [new - old for old, new in zip(*nll, strict=True)]
    print_row(name, *cells, *(mean(values, 3) for values in nll), mean(change, 4))


def print_decisions(name: str, runs: list[dict]) -> None:
    """Print a row: coverage and size of the sets with coverage 0.9, AURC, and accuracy by doubt."""
    sets = [run["prediction_sets"]["0.9"] for run in runs]
    doubts = [run["doubt"]["probability"] for run in runs]
    columns = [
        [100 * found["coverage"] for found in sets],
        [found["mean_size"] for found in sets],
        [100 * found["aurc"] for found in doubts],
        *([100 * found["accuracy_of_share"][share] for found in doubts] for share in ("0.7", "1.0")),
    ]
    print_row(name, *(mean(values, 2) for values in columns))


def print_divisions(name: str, runs: list[dict]) -> None:
    """Print a row per subset of the inputs, over all divisions of all seeds."""
    for inputs in runs[0]["divisions"]:
        found = {
            key: [value for run in runs for value in run["divisions"][inputs][key]]
            for key in ("coverage", "size", "below", "above")
        }
        coverage, total = found["coverage"], len(found["coverage"])
        cells = [f"{value:.1f}" for value in (statistics.mean(coverage), min(coverage), max(coverage))]
        counts = [f"{sum(found[key]):.0f} of {total}" for key in ("below", "above")]
        print_row(f"{name}, {inputs}", *cells, f"{statistics.mean(found['size']):.2f}", *counts)


def print_outliers(name: str, runs: list[dict]) -> None:
    """Print a row per replaced input and score."""
    for replaced, score in runs[0]["outliers"]:
        cells = zip(*(run["outliers"][replaced, score] for run in runs), strict=True)
        shown = ("" if math.isnan(values[0]) else mean(values, 1) for values in cells)
        print_row(name, replaced, score, *shown)


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--configs", nargs="+", default=[f"configs/{name}.yaml" for name in ("keypad", "ask", "digits")]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", metavar="FOLDER")
    parser.add_argument("--method", default="temperature", choices=["temperature", "vector"])
    args = parser.parse_args()
    results: dict[str, list[dict]] = {}
    print_header("data, inputs", *CALIBRATION)
    for path in args.configs:
        name = Path(path).stem
        runs = results[name] = []
        for seed in range(args.seeds):
            config = read_config(path, args.data if name == "digits" else None)
            with tempfile.TemporaryDirectory() as folder:
                runs.append(fit_and_test(config, seed, args.method, Path(folder)))
        found = [run["calibration"] for run in runs]
        each = ", ".join(f"{run.get('temperature', 1):.2f}" for run in found)
        print_calibration(f"{name}, all (T {each})", found)
        for inputs in found[0]["by_inputs"]:
            print_calibration(f"{name}, {inputs}", [run["by_inputs"][inputs] for run in found])
    for header, print_rows in (
        (["data", *DECISIONS], print_decisions),
        (["data, inputs", *DIVISIONS], print_divisions),
        (["data", "replaced", "score", *OUTLIERS], print_outliers),
    ):
        print_header(*header)
        for name, runs in results.items():
            print_rows(name, runs)


if __name__ == "__main__":
    main()
