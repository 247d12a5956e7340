"""``fusion-pl explain``, which writes a page and a file about the reasons for the predictions of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import track

from fusion_pl.cli.checkpoint_options import add_checkpoint_option, add_model_options, load_model
from fusion_pl.cli.parsing import parse_checkpoint_command
from fusion_pl.data.rows import ManifestRows
from fusion_pl.explain.explainer import Explainer, Method
from fusion_pl.explain.explanation import Explanation
from fusion_pl.explain.report import Section, make_section, write_page
from fusion_pl.files import atomic_write, check_output_folder
from fusion_pl.messages import did_you_mean, escape_unprintable
from fusion_pl.training.interrupt import StopSignals
from fusion_pl.types import UserError

DEFAULT_LIMIT = 20


def explain_parser() -> ArgumentParser:
    """Return the parser of ``fusion-pl explain``."""
    parser = ArgumentParser(prog="fusion-pl explain", exit_on_error=False, allow_abbrev=False)
    add_checkpoint_option(parser)
    parser.add_argument("--output", type=str, required=True, help="folder of explanation.html and explanations.jsonl")
    parser.add_argument("--limit", type=int, default=DEFAULT_LIMIT, help="number of rows to explain, from the first on")
    parser.add_argument(
        "--ids",
        type=list[str] | str,
        default=[],
        help="ids of the rows to explain instead, separated by commas; without an id column, the row numbers",
    )
    parser.add_argument(
        "--target",
        type=str | None,
        default=None,
        help="class to explain in all rows, also where another one is predicted; by default the predicted one, or the "
        "most probable one if several or no labels are predicted",
    )
    parser.add_argument(
        "--method",
        type=Method,
        default="occlusion",
        help="how the effects of words and other parts are computed; integrated_gradients: of texts and images only",
    )
    add_model_options(parser)
    return parser


@StopSignals().handle_signals()
def explain_command(arguments: list[str]) -> int:
    """Run ``fusion-pl explain``; return 1 if no row could be explained, else 0."""
    config = parse_checkpoint_command(explain_parser(), arguments)
    output = Path(config.output)
    check_output_folder(output)
    if config.limit < 1:
        raise UserError(f"--limit is {config.limit}, expected a number of rows of at least 1")
    predictor, data = load_model(config)
    explainer = Explainer(predictor, config.target, config.method)
    samples = data.samples("predict")
    rows = _select_rows(samples, config.ids, config.limit)
    console = Console(stderr=True)
    output.mkdir(parents=True, exist_ok=True)
    sections: list[Section] = []
    with atomic_write(output / "explanations.jsonl") as file:
        for explanation, section in track(
            _explain_rows(explainer, samples, rows),
            description="Explaining",
            total=len(rows),
            console=console,
            transient=True,
        ):
            file.write(json.dumps(explanation.as_dict(), ensure_ascii=False) + "\n")
            sections.append(section)
    write_page(output / "explanation.html", data.manifest, sections, len(samples), config.method)
    for line in [*_summary(sections, len(samples), output, bool(config.ids)), *_note_labels(sections, config.target)]:
        console.print(escape_unprintable(line), highlight=False, markup=False, soft_wrap=True)
    return int(all(section.explanation.error is not None for section in sections))


def _explain_rows(
    explainer: Explainer, samples: ManifestRows, rows: Sequence[int]
) -> Iterator[tuple[Explanation, Section]]:
    for row in rows:
        sample = samples[row]
        explanation = explainer.explain_sample(sample)
        yield explanation, make_section(explanation, sample)


def _select_rows(samples: ManifestRows, ids: list[str] | str, limit: int) -> list[int]:
    """Return the indices of the rows to explain."""
    if not ids:
        return list(range(min(limit, len(samples))))
    wanted = [name.strip() for name in ids.split(",")] if isinstance(ids, str) else [str(name) for name in ids]
    index = {samples.sample_id(row): row for row in range(len(samples))}
    for name in wanted:
        if name not in index:
            raise UserError(f"--ids: {samples.manifest} has no row with the id {name!r}{did_you_mean(name, index)}")
    return [index[name] for name in wanted]


def _summary(sections: list[Section], total: int, output: Path, has_ids: bool) -> list[str]:
    """Return the lines to print."""
    failed = [section.explanation for section in sections if section.explanation.error is not None]
    lines = [f"{len(sections) - len(failed):,} of {total:,} rows explained: {output / 'explanation.html'}"]
    if failed:
        lines.append(f"{len(failed):,} could not be explained; the first, {failed[0].id}: {failed[0].error}")
    if len(sections) < total and not has_ids:
        lines.append(f"These are the first {len(sections):,} rows; --limit {total} explains all, --ids selects rows.")
    return lines


def _note_labels(sections: list[Section], target: str | None) -> list[str]:
    """Return a sentence if several labels are predicted in a row, and no target is given."""
    count = sum(len(section.explanation.prediction.names) > 1 for section in sections)
    if target is not None or not count:
        return []
    rows = "1 row has" if count == 1 else f"{count:,} rows have"
    text = "several predicted labels, of which only the most probable one is explained: --target NAME explains another"
    return [f"{rows} {text} one in all rows."]
