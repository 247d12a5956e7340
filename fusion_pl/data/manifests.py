"""Write the manifest of a folder per class, or of a public data set, from its files.

    python -m fusion_pl.data.manifests folder FOLDER
    python -m fusion_pl.data.manifests cremad FOLDER
    python -m fusion_pl.data.manifests hateful_memes FOLDER

FOLDER contains a folder per class, or is the unpacked data set; its ``manifest.csv`` is written into it. No other file
is changed.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fusion_pl.data.class_folders import class_folder_rows
from fusion_pl.files import atomic_write
from fusion_pl.types import UserError

Row = dict[str, str]

SEED = 0
VAL_FRACTION = TEST_FRACTION = 0.15
LFS_POINTER = b"version https://git-lfs"  # first bytes of a file that Git LFS has not downloaded

CREMAD_NAME = re.compile(r"(?P<actor>\d+)_(?P<sentence>[A-Z]+)_(?P<emotion>[A-Z]+)_[A-Z]+")
CREMAD_EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}
CREMAD_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
# First file that exists: the releases name them differently.
HATEFUL_MEMES_FILES = {
    "train": ("train.jsonl",),
    "val": ("dev_seen.jsonl", "dev.jsonl"),
    "test": ("test_seen.jsonl", "test.jsonl"),
}
HATEFUL_MEMES_LABELS = {0: "not hateful", 1: "hateful"}


def cremad_rows(folder: Path) -> list[Row]:
    """Return the rows of CREMA-D: a recording, the spoken sentence and the intended emotion.

    15 % of the actors are val and 15 % are test, drawn with a fixed seed: no actor is in two splits.

    Source: Cao et al., CREMA-D, IEEE Transactions on Affective Computing 5(4), 2014.

    Args:
        folder: folder that contains ``AudioWAV``, as in the repository CheyneyComputerScience/CREMA-D.

    Raises:
        UserError: if there are no recordings, if one has another name or was not downloaded by Git LFS, or if there are
            fewer than three actors.
    """
    recordings = sorted((folder / "AudioWAV").glob("*.wav"))
    if not recordings:
        raise UserError(f"{folder / 'AudioWAV'} has no .wav file: give the folder of CREMA-D that contains AudioWAV")
    rows = []
    for path in recordings:
        name = CREMAD_NAME.fullmatch(path.stem)
        if not name or name["emotion"] not in CREMAD_EMOTIONS or name["sentence"] not in CREMAD_SENTENCES:
            raise UserError(
                f"{path} is not named like a recording of CREMA-D, such as 1001_DFA_ANG_XX.wav: move it elsewhere"
            )
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{path} is a pointer to a recording: download the recordings with git lfs pull")
        rows.append(
            {
                "id": path.stem,
                "audio": f"AudioWAV/{path.name}",
                "text": CREMAD_SENTENCES[name["sentence"]],
                "label": CREMAD_EMOTIONS[name["emotion"]],
                "actor": name["actor"],
            }
        )
    actors = sorted({row["actor"] for row in rows})
    if len(actors) < len(("train", "val", "test")):
        raise UserError(f"{folder / 'AudioWAV'} has {len(actors)} actors, expected at least 3, one per split")
    num_val, num_test = (max(1, round(fraction * len(actors))) for fraction in (VAL_FRACTION, TEST_FRACTION))
    order = np.random.default_rng(SEED).permutation(actors)
    splits = dict.fromkeys(order, "train") | dict.fromkeys(order[:num_val], "val")
    splits |= dict.fromkeys(order[num_val : num_val + num_test], "test")
    return [row | {"split": splits[row["actor"]]} for row in rows]


def hateful_memes_rows(folder: Path) -> list[Row]:
    """Return the rows of Hateful Memes: an image, the text in it, and whether it is hateful.

    The splits are those of the release: train, dev (seen) as val, and test (seen) if it has labels.

    Source: Kiela et al., The Hateful Memes Challenge, arXiv 2005.04790.

    Args:
        folder: folder that contains ``img`` and ``train.jsonl``.

    Raises:
        UserError: if a file is missing or one of its lines has another form.
    """
    rows = []
    for split, names in HATEFUL_MEMES_FILES.items():
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None and split != "test":
            raise UserError(
                f"{folder} has no {' or '.join(names)}: give the folder of Hateful Memes that contains img and "
                "train.jsonl"
            )
        if path is not None:
            rows += _hateful_memes_split(path, split)
    return rows


def _hateful_memes_split(path: Path, split: str) -> list[Row]:
    """Return the rows of one file; none if it has no labels, as the first release of test."""
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
                label = entry.get("label")
                row = {"id": str(entry["id"]), "text": entry["text"], "image": entry["img"]}
                if label is not None:
                    rows.append(row | {"label": HATEFUL_MEMES_LABELS[label], "split": split})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path}, line {number}: expected an object with id, img, text and the label 0 or 1 in UTF-8, got "
                    f"{line.decode(errors='replace').strip()[:80]!r}"
                ) from error
    if split == "train" and not rows:
        raise UserError(f"{path} has no row with a label: download it again")
    return rows


LAYOUTS: dict[str, Callable[[Path], list[Row]]] = {
    "folder": class_folder_rows,
    "cremad": cremad_rows,
    "hateful_memes": hateful_memes_rows,
}


def write_manifest(layout: str, folder: str | Path) -> Path:
    """Write ``manifest.csv`` into the folder of a data set, and return its path.

    Args:
        layout: a key of ``LAYOUTS``.
        folder: folder that contains a folder per class, or the unpacked data set.

    Raises:
        UserError: if the folder has another layout, or a ``manifest.csv`` with another content.
    """
    folder = Path(folder)
    rows = LAYOUTS[layout](folder)
    content = io.StringIO(newline="")
    table = csv.DictWriter(content, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    path = folder / "manifest.csv"
    if path.exists() and path.read_bytes() != content.getvalue().encode():
        raise UserError(f"{path} exists and has another content: remove or rename it, so that it can be written")
    with atomic_write(path) as file:
        file.write(content.getvalue())
    if "split" in rows[0]:
        counts = Counter(row["split"] for row in rows)
        print(f"{path}: {', '.join(f'{counts[split]:,} {split}' for split in ('train', 'val', 'test'))} rows")
    else:
        labels = {row["label"] for row in rows}
        print(f"{path}: {len(rows):,} rows of {len(labels):,} classes, with the columns {', '.join(rows[0])}")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 2 after an error that the user can fix."""
    parser = argparse.ArgumentParser("python -m fusion_pl.data.manifests", description=__doc__.splitlines()[0])
    parser.add_argument("layout", choices=list(LAYOUTS), help="a folder per class, or which data set")
    parser.add_argument("folder", help="folder of the classes or of the data set, into which manifest.csv is written")
    options = parser.parse_args(arguments)
    try:
        write_manifest(options.layout, options.folder)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
