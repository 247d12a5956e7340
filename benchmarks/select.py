"""Accuracy on digits with half of the labels, chosen in two rounds by ``predict --select``, beside a random two thirds.

For each seed, a model is trained with a random sixth of the training rows. It chooses another sixth, a model that is
trained with both chooses the last sixth of the half, and the model of the half is compared, on the test split, with one
that is trained with a random two thirds. All models have the same number of training steps, and see text and image.

    python -m benchmarks.select [--data data/digits] [--seeds 0 1 2] [--by margin] [--steps 200]
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import random
import statistics
import tempfile
from pathlib import Path

from benchmarks.measure import print_table
from fusion_pl.cli.run import run

ENCODERS = {
    "text": {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"max_tokens": 32}},
    "image": {"class_path": "fusion_pl.encoders.TinyImage", "init_args": {"image_size": 28, "channels": 1}},
}
BATCH_SIZE, VALIDATIONS = 64, 5


class Pool:
    """Rows of digits, and the models that are trained with some of their labels.

    Args:
        data: folder of the digits.
        folder: folder of the tables and runs.
        steps: number of training steps of each model.
    """

    def __init__(self, data: Path, folder: Path, steps: int) -> None:
        self.data, self.folder, self.steps = data, folder, steps
        with (data / "manifest.csv").open(newline="") as file:
            self.rows = [row for row in csv.DictReader(file) if row["text"] or row["image"]]
        self.ids = [row["id"] for row in self.rows if row["split"] == "train"]
        self.options = ["--data.root", str(data), "--data.num_workers", "0"]

    def write(self, name: str, rows: list[dict[str, str]]) -> str:
        with (self.folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return str(self.folder / name)

    def train(self, labelled: set[str], seed: int) -> tuple[str, float]:
        """Train with the labels of some rows, and return the checkpoint and its accuracy on the test split."""
        rows = [row for row in self.rows if row["split"] != "train" or row["id"] in labelled]
        table = self.write("labelled.csv", rows)
        runs = self.folder / f"run-{seed}-{len(labelled)}"
        call = ["--model.encoders", json.dumps(ENCODERS), "--model.fusion", "Concat", "--model.optimizer", "AdamW"]
        call += ["--model.optimizer.lr", "3e-3", "--model.loss.auxiliary_weight", "0.5", "--data", "ManifestData"]
        call += [
            "--data.manifest",
            table,
            *self.options,
            "--data.batch_size",
            str(BATCH_SIZE),
            "--seed_everything",
            str(seed),
        ]
        call += ["--trainer.max_steps", str(self.steps), "--trainer.max_epochs", "-1", "--trainer.accelerator", "cpu"]
        call += ["--trainer.logger.save_dir", str(runs), "--trainer.enable_progress_bar", "false", "--cache", "off"]
        every = max(1, self.steps * BATCH_SIZE // len(labelled) // VALIDATIONS)  # epochs
        call += ["--trainer.check_val_every_n_epoch", str(every), "--early_stopping.patience", "100", "--threads", "1"]
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = run("fit", call)
        if code:
            raise SystemExit(output.getvalue()[-3000:])
        checkpoint = str(next(runs.glob("**/best.ckpt")))
        tested = self.write("test.csv", [row for row in self.rows if row["split"] == "test"])
        predicted = self.predict(checkpoint, tested)
        truth = {row["id"]: row["label"] for row in self.rows}
        return checkpoint, statistics.mean(row["label"] == truth[row["id"]] for row in predicted)

    def select(self, checkpoint: str, labelled: set[str], number: int, by: str) -> set[str]:
        """Return the ids of the rows that a model chooses among those without a label."""
        rows = [row for row in self.rows if row["split"] == "train"]
        pool = [row | {"label": row["label"] if row["id"] in labelled else ""} for row in rows]
        found = self.predict(checkpoint, self.write("pool.csv", pool), "--select", str(number), "--by", by)
        return {row["id"] for row in found}

    def predict(self, checkpoint: str, table: str, *options: str) -> list[dict[str, str]]:
        output = str(self.folder / "predictions.csv")
        call = ["--ckpt_path", checkpoint, "--data.manifest", table, *self.options, "--output", output, "--overwrite"]
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            code = run("predict", [*call, *options])
        if code:
            raise SystemExit(errors.getvalue())
        with open(output, newline="") as file:
            return list(csv.DictReader(file))


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/digits"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--by", choices=["margin", "bald", "coreset"], default="margin")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    table, gains = [], []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            pool = Pool(arguments.data.resolve(), Path(folder), arguments.steps)
            order = random.Random(seed).sample(pool.ids, len(pool.ids))
            sixth = len(order) // 6
            labelled, accuracies = set(order[:sixth]), []
            for _ in range(2):
                checkpoint, accuracy = pool.train(labelled, seed)
                accuracies.append(accuracy)
                labelled |= pool.select(checkpoint, labelled, sixth, arguments.by)
            _, chosen = pool.train(labelled, seed)
            _, drawn = pool.train(set(order[: 4 * sixth]), seed)
            gains.append(chosen - drawn)
            numbers = [*accuracies, chosen, drawn, chosen - drawn]
            table.append([str(seed), *(f"{number:.3f}" for number in numbers)])
            print(table[-1], flush=True)
    header = ["seed", "random 1/6", f"1/3 by {arguments.by}", f"1/2 by {arguments.by}", "random 2/3", "difference"]
    print_table(f"Test accuracy, mean difference {statistics.mean(gains):+.3f}", header, table)


if __name__ == "__main__":
    main()
