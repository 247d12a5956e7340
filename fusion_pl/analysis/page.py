"""Render a report as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from fusion_pl.files import atomic_write
from fusion_pl.html import Preview

PICTURES = "pictures"  # folder of the SVG files, next to the Markdown file


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
        header: Column names.
        rows: Cells of each row, one per column.
        best: Whether the first row is highlighted.
        text: Whether the cells are sentences rather than numbers.
        caption: What the table shows, if the title of its section does not say so.
        highlighted: Indices of further highlighted rows.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    best: bool = False
    text: bool = False
    caption: str = ""
    highlighted: Collection[int] = ()


@dataclass(frozen=True)
class Picture:
    """An SVG image, its file name without suffix, and its caption."""

    name: str
    caption: str
    image: bytes


@dataclass(frozen=True)
class Card:
    """A sample with a sentence about it and previews of its inputs."""

    title: str
    text: str
    previews: Sequence[Preview] = ()


@dataclass(frozen=True)
class Section:
    """A heading with an optional paragraph, warnings, tables, pictures, samples and commands."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    commands: Sequence[tuple[str, str]] = ()  # (comment, command)
    warnings: Sequence[str] = ()
    cards: Sequence[Card] = ()

    @property
    def fence(self) -> str:
        """Return a Markdown code fence, which is longer than any sequence of backticks in the commands."""
        text = "".join(comment + command for comment, command in self.commands)
        return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def render(kind: Literal["html", "md"], title: str, sections: Sequence[Section]) -> str:
    """Return a page as HTML, which contains the pictures, or as Markdown, which links to their files."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"escape_markdown": _escape_markdown, "one_line": _one_line, "base64": b64encode}
    return environment.get_template(f"report.{kind}.jinja").render(title=title, sections=sections, folder=PICTURES)


def write_pages(folder: Path, title: str, sections: Sequence[Section], others: Mapping[str, str]) -> None:
    """Write ``report.html``, ``report.md`` with its pictures, and other files into a folder, each as a whole.

    Args:
        folder: folder, which is made if it does not exist.
        title: title of the page.
        sections: sections of the page.
        others: file name -> content.
    """
    pictures = [picture for section in sections for picture in section.pictures]
    files = {f"{PICTURES}/{picture.name}.svg": picture.image.decode() for picture in pictures} | dict(others)
    files["report.md"] = render("md", title, sections)
    files["report.html"] = render("html", title, sections)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]&~$])", r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
