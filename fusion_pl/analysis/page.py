"""A page of text, tables and pictures, written as Markdown and as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

PICTURES = "pictures"  # folder beside the Markdown
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 85rem; margin: 2rem auto; padding: 0 1rem; }
p, figcaption { max-width: 50rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid #8885; }
td { white-space: nowrap; }
th:first-child, td:first-child, .text th, .text td { text-align: left; }
.text td { white-space: normal; }
.best { font-weight: bold; background: #4a90d922; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; background: white; }
figcaption { font-size: 0.9rem; opacity: 0.8; }
pre { overflow-x: auto; font-size: 0.8rem; padding: 0.7rem; background: #8882; }
"""


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        header: names of the columns.
        rows: as many cells each.
        best: whether the first row is the best one and is marked.
        text: whether its cells are sentences rather than numbers.
    """

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    best: bool = False
    text: bool = False


@dataclass(frozen=True)
class Picture:
    """An SVG, its file name without suffix, and what it shows."""

    name: str
    caption: str
    image: bytes


@dataclass(frozen=True)
class Section:
    """A heading with a paragraph, a table, pictures and commands, of which any may be missing."""

    title: str
    text: str = ""
    table: Table | None = None
    pictures: list[Picture] = field(default_factory=list)
    commands: list[tuple[str, str]] = field(default_factory=list)  # (what it runs, command)


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the page as Markdown; its pictures are expected in the folder ``pictures`` beside it."""
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts.append(f"## {_plain(section.title)}")
        if section.text:
            parts.append(_plain(section.text))
        if section.table:
            parts.append(_markdown_table(section.table))
        parts += [
            f"![{_plain(one.caption)}]({PICTURES}/{one.name}.svg)\n\n{_plain(one.caption)}" for one in section.pictures
        ]
        if section.commands:
            lines = "\n".join(f"# {_line(what)}\n{command}" for what, command in section.commands)
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
            parts.append(f"{fence}bash\n{lines}\n{fence}")
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rows = [[_plain(cell) for cell in row] for row in table.rows]
    if table.best:
        rows[0][0] = f"**{rows[0][0]}**"
    side = ":--" if table.text else "--:"
    lines = [[_plain(name) for name in table.header], [":--", *[side] * (len(table.header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is: what users named is never markup."""
    return re.sub(r"([\\`*_|<>\[\]&~$])", r"\\\1", _line(text))


def _line(text: str) -> str:
    return " ".join(text.split())


def html(title: str, sections: Sequence[Section]) -> str:
    """Return the page as one HTML file with its pictures inside."""
    body = "\n".join(_html_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html_section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    if section.table:
        parts.append(_html_table(section.table))
    for one in section.pictures:
        # An image of its own, not inline <svg>: the ids of two pictures would meet, and nothing in it can be a script.
        source = f"data:image/svg+xml;base64,{base64.b64encode(one.image).decode()}"
        caption = escape(one.caption)
        parts.append(f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>')
    if section.commands:
        lines = "\n".join(f"# {_line(what)}\n{command}" for what, command in section.commands)
        parts.append(
            f"<details><summary>{len(section.commands)} commands</summary><pre>{escape(lines)}</pre></details>"
        )
    return "\n".join(parts)


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    lines = []
    for place, row in enumerate(table.rows):
        mark = ' class="best"' if table.best and place == 0 else ""
        lines.append(f"<tr{mark}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>")
    kind = "wide text" if table.text else "wide"
    body = "\n".join(lines)
    return f'<div class="{kind}"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
