"""The commands of all pages parse, those of the README run in their order, and links and files of the pages exist."""

from __future__ import annotations

import importlib.metadata
import io
import re
import shlex
import shutil
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from fusion_pl.__main__ import COMMANDS
from fusion_pl.cli.run import run
from fusion_pl.encoders import Encoder
from fusion_pl.fusion import Mean
from fusion_pl.module import FusionClassifier
from fusion_pl.predict import Predictor

from .commands import run_command
from .parsing import ROOT, parse

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "benchmarks/README.md")
PAGES += tuple(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/*.md")))
FOLDERS = r"(?:\.ci|\.github|benchmarks|configs|docs|fusion_pl|notebooks|tests)"

every_page = pytest.mark.parametrize("page", PAGES)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), flags=re.DOTALL | re.MULTILINE)


def shell_lines(page):
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines for words in split_commands(line)]


def split_commands(line):
    """Split ``a && b  # comment`` into its commands."""
    words = shlex.split(line, comments=True)
    commands = [[]]
    for word in words:
        commands.append([]) if word == "&&" else commands[-1].append(word)
    return [command for command in commands if command]


def without_input(words):
    """Split ``command < file`` into the words of the command and the content of the file."""
    if words[-2:-1] != ["<"]:
        return words, b""
    return words[:-2], Path(words[-1]).read_bytes() if Path(words[-1]).is_file() else b""


def fusion_pl_commands(page):
    """Return the arguments of the shown commands."""
    return [without_input(words)[0][1:] for words in shell_lines(page) if words[0] == "fusion-pl"]


FUSION_PL = [*dict.fromkeys(tuple(words) for page in PAGES for words in fusion_pl_commands(page))]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A new user's folder: the shipped configurations, and the YAML blocks whose first line names a file."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for block in blocks("README.md", "yaml"):
        if found := re.match(r"# (\w+\.yaml)\n", block):
            (tmp_path / found[1]).write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pages_show_every_command():
    assert {" ".join(words[: 1 + (words[0] == "data")]) for words in FUSION_PL} == set(COMMANDS) - {
        "validate"
    }  # which works like test


@pytest.mark.parametrize("words", FUSION_PL, ids=" ".join)
def test_a_shown_command_parses(words, folder):
    parse(*words)


def test_the_offline_command_reads_all_encoders_from_folders(folder):
    (words,) = [words for words in fusion_pl_commands("docs/encoders.md") if "models/" in " ".join(words)]
    encoders = parse(*words).model.encoders
    assert {encoder.init_args.pretrained.partition("/")[0] for encoder in encoders.values()} == {"models"}


def test_a_second_configuration_replaces_all_encoders(folder):
    config = parse("fit", "--config", "configs/own.yaml", "--config", "parts.yaml")
    assert list(config.model.encoders) == ["title", "photo"]


@every_page
def test_other_shown_commands_exist(page):
    scripts = {script.name for script in importlib.metadata.entry_points(group="console_scripts")}
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for words in shell_lines(page):
        program = words[0].removeprefix(".venv/bin/")
        if program == "make":
            assert set(words[1:]) <= targets, words
        elif (ROOT / program).is_file():
            assert (ROOT / program).stat().st_mode & 0o100, f"{program} cannot be executed"
        else:
            assert program in scripts | {"python3", "python", "pre-commit", ".", "cp", "curl", "docker"}, words
        if words[1:2] == ["-m"] and words[2] != "venv":
            assert (ROOT / words[2].replace(".", "/")).with_suffix(".py").is_file() or words[2] == "pytest", words


@every_page
def test_no_shown_command_refuses_the_output_of_another(page):
    """``compare`` adds to its report; the other commands refuse an output that exists."""
    commands = [words for words in fusion_pl_commands(page) if words[0] in {"predict", "explain", "evaluate", "export"}]
    outputs = [words[words.index("--output") + 1] for words in commands if "--output" in words]
    written = [output for output in outputs if output != "-"]
    assert sorted(written) == sorted(set(written))


@every_page
def test_every_linked_file_exists(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if not target.startswith(("http://", "https://", "#")):
            assert (ROOT / page).parent.joinpath(target.partition("#")[0]).exists(), target


@every_page
def test_every_named_file_exists(page):
    for path in re.findall(rf"`({FOLDERS}/[\w./-]*)`", text_of(page)):
        assert (ROOT / path).exists(), path


@every_page
def test_every_linked_section_exists(page):
    for name, section in re.findall(r"\]\(([^)\s#]*)#([^)\s]+)\)", text_of(page)):
        if not name.startswith("http"):
            titles = re.findall(r"^#+ (.+)$", text_of((Path(page).parent / name) if name else page), flags=re.MULTILINE)
            assert section in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}, section


def test_the_page_of_the_benchmarks_shows_every_script():
    shown = {words[2] for words in shell_lines("benchmarks/README.md") if words[:2] == ["python", "-m"]}
    scripts = {path for path in ROOT.glob("benchmarks/*.py") if '"__main__"' in path.read_text(encoding="utf-8")}
    assert shown == {f"benchmarks.{path.stem}" for path in scripts}


def test_the_layers_of_contributing_are_those_that_are_enforced():
    (shown,) = re.findall(r"^```\n(__main__\n.*?)^```", text_of("CONTRIBUTING.md"), flags=re.DOTALL | re.MULTILINE)
    enforced = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [re.split(r" \| |, ", re.split(r"  +", line)[0]) for line in shown.splitlines()] == [
        re.split(r" [|:] ", layer.replace("fusion_pl.", "")) for layer in enforced
    ]


def block_with(page, words):
    """Return the one Python block of a page that contains some words."""
    (block,) = [block for block in blocks(page, "python") if words in block]
    return block


def test_the_training_of_the_readme_runs(folder, manifest):
    """As a script, in a new process."""
    (folder / "data").mkdir()
    (folder / "data/pets").symlink_to(manifest.parent)
    script = folder / "train.py"
    guarded = textwrap.indent(block_with("README.md", "trainer.fit"), "    ")
    script.write_text(f'if __name__ == "__main__":\n{guarded}')
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    ran = run_command(script, code=code, folder=folder, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert ran.returncode == 0, ran.stderr
    assert "test/accuracy" in ran.stdout
    assert "Prediction(id='0', label=" in ran.stdout
    assert list(folder.glob("lightning_logs/version_0/checkpoints/best.ckpt"))


@pytest.fixture
def pets(folder):
    """The table and the files of the README, with more rows of the same kind."""
    for name in ("photos", "sounds"):
        (folder / "data/pets" / name).mkdir(parents=True)
    header, cat, dog = next(block for block in blocks("README.md", "csv")).splitlines()
    rows = [header, cat, dog]
    for number in range(1, 17):
        pixels = np.full((20, 30, 3), 90 + 100 * (number % 2), np.uint8)
        Image.fromarray(pixels).save(folder / f"data/pets/photos/{number}.jpg")
        tone = np.sin(np.arange(4000) * (0.1 + number % 2))
        soundfile.write(folder / f"data/pets/sounds/{number}.wav", 0.3 * tone, 8000)
        rows.append(f"pet {number},photos/{number}.jpg,sounds/{number}.wav,{('dog', 'cat')[number % 2]}")
    (folder / "data/pets/manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    films = [
        "text,image,genres",
        *(f"film {n},pets/photos/{n}.jpg,{('drama|crime', 'drama')[n % 2]}" for n in range(1, 17)),
    ]
    (folder / "data/films.csv").write_text("\n".join(films) + "\n", encoding="utf-8")
    return folder


def test_the_commands_of_the_readme_run_in_their_order(pets, monkeypatch, capfd):
    """From the table to predictions, with the paths of the page, except commands that need the hub."""
    monkeypatch.setattr(sys, "argv", ["fusion-pl"])
    quick = ("--trainer.max_epochs", "1", "--data.num_workers", "0", "--trainer.enable_progress_bar", "false")
    ran = []
    for line in shell_lines("README.md"):
        for path in re.findall(r"(?:image=@?|< )(\S+)", " ".join(line)):
            assert Path(path).is_file(), line
        words, standard_input = without_input(line)
        if words[0] == "cp":
            shutil.copy(*words[1:])
        elif words[:1] == ["fusion-pl"] and words[1] in {"fit", "test"} and "fusion_pl.data.ManifestData" in words:
            assert run(words[1], [*words[2:], *quick]) == 0
            ran.append(words[1])
        elif words[:2] == ["fusion-pl", "predict"]:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(standard_input)))
            assert run("predict", words[2:]) == 0
            ran.append("predict")
            assert "does not exist" not in str(capfd.readouterr())
    assert ran == ["fit", "test"] + ["fit"] * 2 + ["predict"] * 4
    assert [path.name for path in sorted(Path("lightning_logs").iterdir())] == ["films", "pets"]
    exec(compile(block_with("README.md", "lost.jpg"), "README.md", "exec"), {})
    label, *_, lost = capfd.readouterr().out.splitlines()
    assert label.split()[0] in {"cat", "dog"}
    assert lost == "lost.jpg does not exist"


def test_the_encoder_of_contributing_works():
    names: dict[str, object] = {}
    for block in blocks("CONTRIBUTING.md", "python"):
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    (encoder,) = (
        part for part in names.values() if isinstance(part, type) and issubclass(part, Encoder) and part is not Encoder
    )
    predictor = Predictor(FusionClassifier({"photo": encoder()}, Mean, ["cat", "dog"]), device="cpu")
    dark, bright = (Image.new("RGB", (40, 30), (shade,) * 3) for shade in (20, 230))
    together = predictor.predict([{"photo": dark}, {"photo": bright}])
    assert [prediction.error for prediction in together] == [None, None]
    assert together[0].probabilities != together[1].probabilities
    assert together[1].probabilities == pytest.approx(predictor.predict({"photo": bright}).probabilities, abs=1e-6)
