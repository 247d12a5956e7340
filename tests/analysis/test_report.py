"""The report: CSV, Markdown, and the self-contained HTML page."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

import fusion_pl
from fusion_pl.analysis.plots import plot_score_against_cost, plot_score_by_subset, to_svg
from fusion_pl.analysis.report import write_report
from fusion_pl.analysis.result import RunResult
from fusion_pl.analysis.summary import summarise
from fusion_pl.training.figures import plot_missing_inputs
from tests.analysis.runs import INPUTS, done, failed

SEEDS = (0, 1)
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collect tags, tables and text; fail on tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def runs() -> list[RunResult]:
    good, bad = "1111011111" * 20, "1101011010" * 20
    return [
        done("Mean", 0, 0.7, bad),
        done("Mean", 1, 0.72, bad[1:] + bad[:1]),
        done("Concat", 0, 0.9, good),
        done("Concat", 1, 0.94, good),
        done("Concat", 0, 0.6, bad, ("text",)),
        done("Concat", 1, 0.6, bad, ("text",)),
        *(
            done("Concat", seed, 1.0, "1" * 6, ("image",), test_hash="6", validation_hash="5", validation_samples=5)
            for seed in SEEDS
        ),
        done("Sum", 0, 0.5, bad),
        failed("Sum", 1, "out of memory"),
        failed("Block", 0, "a <script>alert(1)</script> | pipe"),
    ]


@pytest.fixture(scope="module")
def folder(runs: list[RunResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "new" / "run1"
    write_report(runs, INPUTS, path, "configs/<keypad>.yaml")
    return path


def test_the_csv_has_one_line_per_run(runs: list[RunResult], folder: Path) -> None:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(runs)
    assert {line["label"] for line in lines} == {"Mean", "Concat", "text alone", "image alone", "Sum", "Block"}
    assert {line["label"] for line in lines if line["ranked"] == "True"} == {"Mean", "Concat", "text alone", "Sum"}
    (best,) = [line for line in lines if (line["label"], line["seed"]) == ("Concat", "1")]
    assert (float(best["validation"]), float(best["test/accuracy"]), best["test_samples"]) == (0.94, 0.9, "200")
    ends = stats.binomtest(180, 200).proportion_ci(0.95, "wilson")
    interval = [float(best[f"test/accuracy/{end}"]) for end in ("low", "high")]
    assert (best["validation_samples"], interval) == ("50", pytest.approx([ends.low, ends.high]))
    assert float(best["test/accuracy(image)"]) == pytest.approx(0.8)
    (broken,) = [line for line in lines if line["label"] == "Block"]
    assert (broken["status"], broken["validation"], broken["reason"]) == ("failed", "", runs[-1].reason)


def test_the_page_is_self_contained_and_has_no_scripts(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "keypad"}
    addresses = [value or "" for _, attrs in page.tags for key, value in attrs.items() if key in {"src", "href"}]
    assert len(addresses) == 4
    assert all(address.startswith("data:image/svg+xml;base64,") for address in addresses)


def test_the_ranking_table(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    start = next(index for index, row in enumerate(page.rows) if "p-value against the best" in row)
    header, *rows = page.rows[start : start + 5]
    cells = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(cells) == ["Concat", "Mean", "text alone", "Sum"]  # by validation
    best = cells["Concat"]
    assert (best["test samples"], best["test accuracy in %"]) == ("200", "90.00 ± 0.00")
    ends = stats.binomtest(120, 200).proportion_ci(0.95, "wilson")
    assert cells["Sum"]["95 % interval"] == f"{100 * ends.low:.1f} to {100 * ends.high:.1f}"
    assert best["validation accuracy in %"] == "92.00 ± 2.83"
    assert (best["p-value against the best"], cells["Mean"]["p-value against the best"]) == ("best", "< 0.001")
    assert (best["parameters"], best["FLOPs per sample"]) == ("6.0 k", "2.5 M")
    assert (best["ms per batch (samples)"], best["training in s"], best["memory in MB"]) == ("18.0 (8)", "10.5", "512")
    assert cells["Sum"]["seeds"] == "1 of 2"
    assert cells["Sum"]["test accuracy in %"] == "60.00"  # no standard deviation for one seed
    assert [attrs for tag, attrs in page.tags if tag == "tr" and attrs] == [{"class": "best"}]


def test_rows_on_other_samples_have_a_separate_table(folder: Path) -> None:
    rows = Page((folder / "report.html").read_text(encoding="utf-8")).rows
    header = next(row for row in rows if "Concat on the same test samples, in %" in row)
    cells = dict(zip(header, rows[rows.index(header) + 1], strict=True))
    assert cells.pop("95 % interval") == "61.0 to 100.0"  # Wilson's interval of six of six
    assert list(cells.values()) == ["image alone", "2", "6", "100.00 ± 0.00", "100.00 ± 0.00", "5", "83.33"]
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "The best of the 4 rows measured on the same samples on validation is Concat: 50 validation and" in text
    for picture in ("parameters", "latency"):
        assert "image alone" not in (folder / "pictures" / f"{picture}.svg").read_text(encoding="utf-8")


def test_failures_have_reasons(folder: Path, runs: list[RunResult]) -> None:
    rows = Page((folder / "report.html").read_text(encoding="utf-8")).rows
    assert ["Block", "0", runs[-1].reason] in rows
    assert ["Sum", "1", "out of memory"] in rows


def test_accuracy_per_set_of_inputs(folder: Path) -> None:
    rows = Page((folder / "report.html").read_text(encoding="utf-8")).rows
    assert ["test accuracy in %", "text", "image", "text + image"] in rows
    assert ["test samples", "200", "6 to 200", "200"] in rows  # image alone was tested on other rows
    assert ["Concat", "80.0", "80.0", "90.0"] in rows
    assert ["text alone", "60.0", "–", "–"] in rows


def test_commands_are_in_a_details_element(folder: Path, runs: list[RunResult]) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    details = re.search(r"<details>.*</details>", text, re.DOTALL)
    assert details is not None
    for one in runs:
        assert one.command in details[0]
        assert one.command in (folder / "report.md").read_text(encoding="utf-8")


def test_the_markdown(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Comparison of fusions: configs/\\<keypad\\>.yaml\n")
    assert not re.search(r"(?<!\\)<", text)
    assert "| **Concat** |" in text
    for line in re.findall(r"^\|.*\|$", text, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", line)) in {3, 4, 5, 9, 14}  # a pipe in a reason is escaped
    names = re.findall(r"\]\((pictures/\w+\.svg)\)", text)
    assert len(names) == 4
    for name in names:
        assert ElementTree.parse(folder / name).getroot().tag.endswith("svg")


def test_the_report_is_deterministic_and_leaves_no_partial_files(
    folder: Path, runs: list[RunResult], tmp_path: Path
) -> None:
    write_report(runs, INPUTS, tmp_path, "configs/<keypad>.yaml")
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert names == {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert {Path(name).suffix for name in names} == {".csv", ".md", ".html", ".svg"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_report_of_failures_only(tmp_path: Path) -> None:
    write_report([failed("Block", 0, "broke")], INPUTS, tmp_path, "base")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.rows == [["head", "seeds", "reason"], ["Block", "0", "broke"]]
    assert "No run finished" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_report_of_nothing(tmp_path: Path) -> None:
    write_report([], INPUTS, tmp_path, "base")
    assert "No run finished" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_one_head_one_input_one_seed_no_costs(tmp_path: Path) -> None:
    bare = dict.fromkeys(("parameters", "head_parameters", "flops", "latency_ms", "batch_size", "memory_mb", "seconds"))
    write_report([done("Mean", 0, 0.8, "0111", ("text",), **bare)], ("text",), tmp_path, "base")
    rows = Page((tmp_path / "report.html").read_text(encoding="utf-8")).rows
    assert ["Mean", "1", "4", "75.00", "30.1 to 95.4", "80.00", "best", *["–"] * 6] in rows
    assert [path.name for path in tmp_path.glob("pictures/*")] == ["inputs.svg"]  # no costs, no missing inputs


def test_heads_on_samples_of_their_own_have_no_best(tmp_path: Path) -> None:
    write_report(
        [done("Mean", 0, 0.8, "0111", ("text",)), done("Sum", 0, 0.8, "01", ("image",))], INPUTS, tmp_path, "base"
    )
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "No two heads were measured on the same samples, so there is no best head" in text
    assert "**" not in text
    assert [path.name for path in tmp_path.glob("pictures/*")] == ["inputs.svg"]


def test_the_front_is_drawn_through_what_nobody_beats() -> None:
    runs = [done("A", 0, 0.7, "01"), done("BB", 0, 0.6, "01"), done("CCC", 0, 0.9, "01")]
    figure = plot_score_against_cost(summarise(runs, INPUTS).ranked, "latency_ms")
    assert figure is not None
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata() == pytest.approx(np.array([[3.0, 70.0], [9.0, 90.0]]))
    assert {text.get_text(): text.get_weight() for text in axes.texts} == {"A": "bold", "BB": "normal", "CCC": "bold"}


def test_dollar_signs_in_names_are_not_math() -> None:
    names = ("$price$", "x_$1")
    subsets = {"$price$": 0.5, "x_$1": 0.5, "$price$+x_$1": 0.9}
    rows = summarise([done("$\\bad", seed, 0.7, "01", names, subsets=subsets) for seed in SEEDS], names).ranked
    figures = (
        plot_score_against_cost(rows, "parameters"),
        plot_score_by_subset(rows, names),
        plot_missing_inputs(subsets, names, rows[0].label),
    )
    for figure in figures:
        assert figure is not None
        assert to_svg(figure).startswith(b"<?xml")


@pytest.mark.parametrize(
    "template", sorted(Path(fusion_pl.__file__).parent.rglob("*.html.jinja")), ids=lambda path: path.parent.name
)
def test_a_long_path_in_a_heading_is_broken_on_a_narrow_screen(template: Path) -> None:
    style = template.read_text().partition("<style>")[2].partition("</style>")[0]
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", style)
    broken = {name.strip() for names, rule in rules if "overflow-wrap: anywhere" in rule for name in names.split(",")}
    assert broken & {"body", "h1"}
