"""How often ``fusion-pl evaluate`` warns of a group, by chance and if a group is worse.

Errors of 0 and 1 are drawn for rows with three groupings, of six, four and four groups. With nothing planted, the share
of the pages with a warning is at most 5 %. With one planted group, power is the share of the pages that warn of it.

    python -m benchmarks.groups
"""

from __future__ import annotations

import argparse

import numpy as np

from fusion_pl.analysis.statistics import holm_correction
from fusion_pl.evaluate.group_section import MIN_ROWS
from fusion_pl.evaluate.group_tests import group_p_value
from fusion_pl.evaluate.section import ALPHA

GROUPS = (6, 4, 4)  # number of groups of each grouping
ERROR = 0.1  # of the model on all other groups


def warned_groups(rng, rows, planted_rows=0, planted_error=0.0):
    """Draw the errors of one page, and return the groups with a warning; the planted group is (0, 0)."""
    codes = [rng.integers(count, size=rows) for count in GROUPS]
    if planted_rows:
        codes[0] = np.concatenate([np.zeros(planted_rows, int), rng.integers(1, GROUPS[0], rows - planted_rows)])
    chance = np.where(codes[0] == 0, planted_error, ERROR) if planted_rows else ERROR
    errors = (rng.random(rows) < chance).astype(float)
    p_values = {
        f"{index} {code}": group_p_value(errors, codes[index] == code)
        for index, count in enumerate(GROUPS)
        for code in range(count)
        if (codes[index] == code).sum() >= MIN_ROWS
    }
    return {tuple(map(int, name.split())) for name, value in holm_correction(p_values).items() if value <= ALPHA}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=1000, help="number of drawn pages per line")
    pages = parser.parse_args().pages
    rng = np.random.default_rng(0)
    header = ("rows", "rows of the planted group", "its error", "pages that warn of it", "pages with any other warning")
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for rows in (200, 1000):
        for planted_rows, error in ((0, 0.0), (20, 0.3), (20, 0.5), (50, 0.3), (50, 0.5)):
            found = [warned_groups(rng, rows, planted_rows, error) for _ in range(pages)]
            hits = sum((0, 0) in warned for warned in found) if planted_rows else None
            others = sum(bool(warned - ({(0, 0)} if planted_rows else set())) for warned in found)
            cells = [rows, planted_rows or "none", f"{error:.0%}" if planted_rows else ""]
            cells += ["" if hits is None else f"{hits / pages:.1%}", f"{others / pages:.1%}"]
            print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
