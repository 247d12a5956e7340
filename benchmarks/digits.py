"""Test accuracy on a demo or real data set: the fused model and each input alone, over several seeds.

Runs ``fusion-pl fit`` and ``fusion-pl test`` with the configuration, and with each one of its encoders. Early stopping
and the best checkpoint depend on validation only; the test split is used once per run.

    python -m benchmarks.digits [--config configs/digits.yaml] [--data FOLDER] [--seeds 3] [--inputs all text …]

The data set is that of the configuration, or the ``manifest.csv`` of FOLDER.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml


def fit_and_test(config: dict, seed: int, folder: Path) -> tuple[float, float]:
    """Return the test accuracy in percent, and the seconds of ``fusion-pl fit``."""
    path = folder / "config.yaml"
    config["trainer"]["logger"]["init_args"] |= {"save_dir": str(folder), "name": "run"}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "fusion_pl"]
    options = ["--config", str(path), "--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
    started = time.perf_counter()
    subprocess.run([*command, "fit", *options], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    subprocess.run([*command, "test", *options], check=True, capture_output=True)
    results = json.loads((folder / "run/version_1/metrics.json").read_text())
    return 100 * results["metrics"]["test/accuracy"], seconds


def read_config(path: str, data: str | None) -> dict:
    """Read the configuration; with ``data``, its data set is the manifest of that folder."""
    config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if data is not None:
        options = {key: value for key, value in config["data"]["init_args"].items() if key not in {"folder", "sources"}}
        manifest = {"manifest": str(Path(data) / "manifest.csv")}
        config["data"] = {"class_path": "fusion_pl.data.ManifestData", "init_args": options | manifest}
    return config


def main() -> None:
    """Print a Markdown row per set of inputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits.yaml")
    parser.add_argument("--data", metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--inputs", nargs="+", default=["all", "text", "image", "audio"])
    args = parser.parse_args()
    print("| inputs | test accuracy, % (mean ± sd) | each seed | seconds of fit |\n| --- | --- | --- | --- |")
    for name in args.inputs:
        runs = []
        for seed in range(args.seeds):
            config = read_config(args.config, args.data)
            if name != "all":
                config["model"]["encoders"] = {name: config["model"]["encoders"][name]}
                augment = config["data"]["init_args"].get("augment", {})
                config["data"]["init_args"]["augment"] = {key: augment[key] for key in augment if key == name}
                config["data"]["init_args"]["drop_empty"] = True  # accuracy over the rows that have the input
            with tempfile.TemporaryDirectory() as folder:
                runs.append(fit_and_test(config, seed, Path(folder)))
        accuracies, seconds = zip(*runs, strict=True)
        sd = statistics.stdev(accuracies) if len(runs) > 1 else 0.0
        each = ", ".join(f"{accuracy:.1f}" for accuracy in accuracies)
        duration = f"{min(seconds):.0f} to {max(seconds):.0f}"
        print(f"| {name} | {statistics.mean(accuracies):.1f} ± {sd:.1f} | {each} | {duration} |", flush=True)


if __name__ == "__main__":
    main()
