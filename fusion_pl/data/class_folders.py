"""Rows of a folder per class, whose files of one name are a sample: ``cat/rex.jpg``, ``cat/rex.wav``."""

from __future__ import annotations

from pathlib import Path

from fusion_pl.types import UserError

# Endings of the formats that the image and audio processors open.
ENDINGS = {
    "text": (".txt",),
    "image": (
        *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
        *(".ppm", ".pgm", ".pbm", ".jp2", ".j2k"),
    ),
    "audio": (".wav", ".flac", ".ogg", ".mp3"),
}
INPUTS = {ending: name for name, endings in ENDINGS.items() for ending in endings}


def class_folder_rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a folder per class, with a column per input that occurs, and ``label``.

    A text file is a text cell with its content; images and sounds are paths relative to ``folder``. Files in ``folder``
    itself, and files and folders whose names begin with a dot, are left out.

    Args:
        folder: folder that contains a folder per class.

    Raises:
        UserError: if there are no files, or if a file has another format, is a folder, is not in UTF-8, or is the
            second text, image or sound of its sample.
    """
    files: dict[tuple[str, str], dict[str, Path]] = {}
    for path in sorted(folder.glob("[!.]*/[!.]*")):
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the name of {str(path)!a} is not in UTF-8, as the table is: rename the file") from error
        name = INPUTS.get(path.suffix.lower())
        if name is None or path.is_dir():
            expected = "; ".join(f"{', '.join(endings)} ({name})" for name, endings in ENDINGS.items())
            kind = "is a folder" if path.is_dir() else "has another format"
            raise UserError(
                f"{path} {kind}: a folder of a class contains files with the endings {expected}; convert it to one of "
                "them, or move it elsewhere"
            )
        sample = files.setdefault((path.parent.name, path.stem), {})
        if name in sample:
            raise UserError(
                f"{sample[name]} and {path} are both the {name} of one sample, because their names are equal up to the "
                "ending: rename one of them"
            )
        sample[name] = path
    if not files:
        raise UserError(f"{folder} has no folder with files: expected a folder per class, such as {folder}/cat/rex.jpg")
    columns = [name for name in ENDINGS if any(name in sample for sample in files.values())]
    return [
        {column: _cell(folder, column, sample.get(column)) for column in columns} | {"label": label}
        for (label, _), sample in files.items()
    ]


def _cell(folder: Path, column: str, path: Path | None) -> str:
    """Return the content of a text file, or the path of another file; an empty cell if there is none."""
    if path is None:
        return ""
    if column != "text":
        return path.relative_to(folder).as_posix()
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not in UTF-8 ({error}): save it in UTF-8") from error
