"""Calibration error and negative log-likelihood on test, coverage of prediction sets, and accuracy by doubt.

Runs ``fusion-pl fit`` and ``fusion-pl test`` with each configuration. The calibration is fitted on validation only.

    python -m benchmarks.calibration [--configs configs/keypad.yaml configs/ask.yaml configs/digits.yaml] [--seeds 3]
                                     [--data FOLDER] [--method temperature]

``--data FOLDER``: the data set of ``configs/digits.yaml`` is the ``manifest.csv`` of this folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.digits import read_config

SCORES = {"ece": ("ECE in %", 100), "nll": ("NLL", 1), "brier": ("Brier", 1)}


def fit_and_test(config: dict, seed: int, method: str, folder: Path) -> dict:
    """Return the results of ``fusion-pl test``."""
    path = folder / "config.yaml"
    config["trainer"]["logger"]["init_args"] |= {"save_dir": str(folder), "name": "run"}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    options = ["--config", str(path), "--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
    for command in ("fit", "test"):
        arguments = [command, *options, "--model.calibration", method]
        subprocess.run([sys.executable, "-m", "fusion_pl", *arguments], check=True, capture_output=True)
    return json.loads((folder / "run/version_1/metrics.json").read_text())


def row(name: str, runs: list[dict]) -> str:
    """Return a Markdown row of one subset of the inputs: mean ± sd of each score, before and after."""
    cells = []
    for key, (_, factor) in SCORES.items():
        for moment in ("before", "after"):
            values = [factor * run[moment][key] for run in runs]
            sd = statistics.stdev(values) if len(values) > 1 else 0.0
            digits = 1 if factor == 100 else 3
            cells.append(f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}")
    return f"| {name} | " + " | ".join(cells) + " |"


def decisions_row(name: str, runs: list[dict]) -> str:
    """Return a Markdown row: coverage and size of the sets with coverage 0.9, AURC, and accuracy by doubt."""
    sets = [run["prediction_sets"]["0.9"] for run in runs]
    doubts = [run["doubt"]["probability"] for run in runs]
    columns = [
        [100 * found["coverage"] for found in sets],
        [found["mean_size"] for found in sets],
        [100 * found["aurc"] for found in doubts],
        *([100 * found["accuracy_of_share"][share] for found in doubts] for share in ("0.7", "1.0")),
    ]
    cells = [f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" for values in columns]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Print a Markdown row per data set and subset of the inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--configs", nargs="+", default=[f"configs/{name}.yaml" for name in ("keypad", "ask", "digits")]
    )
    parser.add_argument("--seeds", type=int, default=3, help="2 or more")
    parser.add_argument("--data", metavar="FOLDER")
    parser.add_argument("--method", default="temperature", choices=["temperature", "vector"])
    args = parser.parse_args()
    names = [f"{label} {moment}" for label, _ in SCORES.values() for moment in ("before", "after")]
    print("| data, inputs | " + " | ".join(names) + " |\n|" + " --- |" * (len(names) + 1))
    decisions = []
    for path in args.configs:
        results = []
        for seed in range(args.seeds):
            config = read_config(path, args.data if Path(path).stem == "digits" else None)
            with tempfile.TemporaryDirectory() as folder:
                results.append(fit_and_test(config, seed, args.method, Path(folder)))
        decisions.append(decisions_row(Path(path).stem, results))
        runs = [result["calibration"] for result in results]
        each = ", ".join(f"{run.get('temperature', 1):.2f}" for run in runs)
        print(row(f"{Path(path).stem}, all (T {each})", runs), flush=True)
        for inputs in runs[0]["by_inputs"]:
            print(row(f"{Path(path).stem}, {inputs}", [run["by_inputs"][inputs] for run in runs]), flush=True)
    names = ["coverage of sets in %", "mean size", "AURC in %", "accuracy of the surest 70 %", "accuracy of all"]
    print("\n| data | " + " | ".join(names) + " |\n|" + " --- |" * (len(names) + 1), *decisions, sep="\n")


if __name__ == "__main__":
    main()
