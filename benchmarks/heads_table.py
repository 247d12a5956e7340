"""Write the table of all heads in docs/fusion.md from the results of comparisons.

    fusion-pl compare --config configs/keypad.yaml --seeds 3 --jobs 2 --output reports/keypad     # and digits, and ask
    python -m benchmarks.heads_table reports/keypad reports/digits reports/ask

Test accuracy is mean ± standard deviation over seeds (no ± for one seed); parameters, milliseconds per training step
(one batch of 64, forward and backward, including the encoders) and memory are those of the first comparison.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

DOCS = Path(__file__).parents[1] / "docs" / "fusion.md"
BEGIN, END = "<!-- heads: written by benchmarks/heads_table.py -->", "<!-- /heads -->"
Runs = dict[str, list[dict[str, str]]]


def read(folder: Path) -> Runs:
    """Return label -> finished runs."""
    runs: Runs = defaultdict(list)
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["status"] == "done":
                runs[row["label"]].append(row)
    return runs


def accuracy(runs: list[dict[str, str]]) -> str:
    """Return mean ± standard deviation in %."""
    values = [100 * float(row["test/accuracy"]) for row in runs]
    if not values:
        return "–"
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def mean(runs: list[dict[str, str]], column: str) -> str:
    """Return the mean of a column over the runs that measured it."""
    values = [float(row[column]) for row in runs if row[column]]
    return f"{fmean(values):,.0f}" if values else "–"


def table(sets: dict[str, Runs]) -> str:
    """Return the table as Markdown, sorted by name, single inputs last."""
    first = next(iter(sets.values()))
    seeds = {name: max(map(len, runs.values()), default=0) for name, runs in sets.items()}
    header = ["head", *(f"{name} ({count} seed{'s' * (count != 1)})" for name, count in seeds.items())]
    lines = [
        [*header, "parameters of the head", "ms per step", "MB"],
        [":--", *["--:"] * (len(header) + 2)],
    ]
    for label in sorted({label for runs in sets.values() for label in runs}, key=lambda label: (" " in label, label)):
        runs = first.get(label, [])
        lines.append(
            [
                f"`{label}`" if " " not in label else label,
                *(accuracy(comparison.get(label, [])) for comparison in sets.values()),
                *(mean(runs, column) for column in ("head_parameters", "step_ms", "memory_mb")),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Replace the text between the two markers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="of comparisons; their names are the column headers")
    args = parser.parse_args()
    text = DOCS.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        sys.exit(f"{DOCS} has no {BEGIN} … {END}")
    before, _, rest = text.partition(BEGIN)
    sets = {folder.name: read(folder) for folder in args.folders}
    DOCS.write_text(f"{before}{BEGIN}\n\n{table(sets)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
