"""Help and completion show the options of the parser; classes of the current folder can be imported."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys

import pytest
import yaml

from fusion_pl.__main__ import COMMANDS, HELP, main
from fusion_pl.cli.completion import completion_script
from fusion_pl.cli.help import DESCRIPTIONS, EXAMPLES, help_text, sections
from fusion_pl.cli.options import all_options
from fusion_pl.cli.run import command_parser
from fusion_pl.config import import_class
from fusion_pl.data import Ask, Keypad, ManifestData
from fusion_pl.fusion import Fusion
from fusion_pl.types import UserError

from .parsing import ROOT, parse

MAX_LINES = 80


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    """Each option is on one line, whatever terminal runs the tests."""
    monkeypatch.setenv("COLUMNS", "120")


def help_lines(subcommand, *arguments):
    """Return the options that a help text shows, with their lines."""
    lines = help_text(subcommand, arguments).splitlines()
    return {found[1]: line for line in lines if (found := re.match(r"  --([\w.]+) ", line))}


def test_every_command_has_help_and_a_valid_example(tmp_path, monkeypatch):
    assert set(DESCRIPTIONS) == set(EXAMPLES) == set(COMMANDS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for subcommand, example in EXAMPLES.items():
        parse(subcommand, *example.split())


def test_the_help_of_serve_cuts_no_sentence():
    lines = help_text("serve", []).splitlines()
    assert not [line for line in lines[1:] if "…" in line]
    assert "(by default 1,000)" in next(line for line in lines if "--window" in line)


def test_the_help_of_the_data_check_has_no_options_of_training():
    """They are accepted, because the configuration is that of fit, and change nothing."""
    names = {"batch_size", "sampling", "bucket_by_length", "augment", "input_dropout", "on_bad_file"}
    options = {f"data.{name}" for name in names}
    assert options <= set(help_lines("fit"))
    assert not options & set(help_lines("data check"))
    assert all(f"--{option} " in help_text("data check", [], everything=True) for option in options)
    assert "data.manifest" in help_lines("data check")


@pytest.mark.parametrize("subcommand", COMMANDS)
def test_percent_signs_are_not_doubled(subcommand):
    """As argparse needs them in the texts of its options."""
    assert "%%" not in help_text(subcommand, [], everything=True)


@pytest.mark.parametrize("subcommand", COMMANDS)
def test_help_is_short(subcommand):
    lines = help_text(subcommand, []).splitlines()
    assert 10 < len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= 120


def test_help_shows_the_options_of_the_data_set_in_use(tmp_path):
    (tmp_path / "ask.yaml").write_text("data: fusion_pl.data.Ask\n")
    (tmp_path / "broken.yaml").write_text("data:\n\t- x\n")
    own, keypad = ["--config", str(ROOT / "configs/own.yaml")], ["--config", str(ROOT / "configs/keypad.yaml")]
    for arguments, cls in (
        ([], ManifestData), (own, ManifestData), (keypad, Keypad), ([*own, *keypad], Keypad),
        ([*keypad, "--data", "ManifestData"], ManifestData), ([*keypad, "--data=Ask"], Ask),
        ([f"--config={tmp_path}/ask.yaml"], Ask), (["--config", f"{tmp_path}/broken.yaml"], ManifestData),
    ):  # fmt: skip
        wanted = {f"data.{name}" for name in inspect.signature(cls).parameters if name != "kwargs"} | {
            "data.batch_size"
        }
        options = help_lines("fit", *arguments)
        assert wanted <= set(options), arguments
        assert ("data.manifest" in options) == (cls is ManifestData)


def value_of(config, key):
    """Return what a parsed configuration has for an option, also below ``init_args``."""
    for name in key.split("."):
        config = config[name] if name in config else config["init_args"][name]
    return config


def test_the_defaults_in_help_are_those_of_the_parser():
    """Compared with a command that has only required options, and with the printed line."""
    parts = ["--model.encoders.text", "TinyText", "--model.fusion", "Mean", "--model.loss", "Loss"]
    config = parse("fit", *parts, "--data", "ManifestData", "--data.manifest", "m.csv")
    lines, seen = help_lines("fit"), 0
    for option in (option for _, options in sections("fit", []) for option in options):
        if option.required or option.key in {"config", "data"}:
            continue
        real = value_of(config, option.key)
        if isinstance(option.default, dict):
            assert option.default["class_path"] == real.class_path
        else:
            assert option.default == real, option.key
            assert real in (None, "") or f"(default: {str(real).lower()})" in lines[option.key].lower()
        seen += 1
    assert seen > 30


def test_help_all_has_every_option():
    everything = help_text("fit", [], everything=True)
    for option, _ in all_options(command_parser("fit")):
        assert f"--{option.key} " in everything
    assert "model.fusion of fusion_pl.fusion.film.FiLM:" in everything


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        ("--trainer.max_epochs 3 --config seven.yaml", 7),
        ("--config seven.yaml --trainer.max_epochs 3", 3),
        ("--config seven.yaml --config eight.yaml", 8),
    ],
)
def test_values_override_those_before_them_as_the_help_says(arguments, epochs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seven.yaml").write_text("trainer: {max_epochs: 7}\n")
    (tmp_path / "eight.yaml").write_text("trainer: {max_epochs: 8}\n")
    words = ["--config", str(ROOT / "configs/keypad.yaml"), *arguments.split()]
    assert command_parser("fit").parse_args(words).trainer.max_epochs == epochs
    assert "a --config overrides everything before it" in " ".join(help_text("fit", [], everything=False).split())


def test_predict_takes_no_training_options():
    keys = {name.partition(".")[2] for name in help_lines("predict") if name.startswith("data.")}
    remote = {"remote_cache", "remote_cache_limit"}
    assert keys == {"manifest", "inputs", "root", "batch_size", "num_workers", "allow_outside"} | remote


def test_the_command_prints_help(monkeypatch, capsys):
    for flag in ("--help", "-h"):
        monkeypatch.setattr(sys, "argv", ["fusion-pl", "fit", "--config", str(ROOT / "configs/keypad.yaml"), flag])
        assert main() == 0
        assert "--data.folder TEXT" in capsys.readouterr().out
    assert "--help-all" in HELP


def test_the_script_completes_commands_options_and_values(tmp_path):
    script = tmp_path / "completion.bash"
    script.write_text(completion_script())
    assert "fusion-pl --completion bash" in (ROOT / "README.md").read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True)

    def complete(*words):
        listed = " ".join(f"'{word}'" for word in words)
        call = (
            f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _fusion_pl; echo ${{COMPREPLY[@]}}"
        )
        ran = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True, cwd=tmp_path)
        return ran.stdout.split()

    assert complete("fusion-pl", "va") == ["validate"]
    assert complete("fusion-pl", "fit", "--data.batch") == ["--data.batch_size"]
    assert complete("fusion-pl", "predict", "--data.val") == []
    assert complete("fusion-pl", "fit", "--model.fusion", "Cro") == ["CrossAttention"]
    assert complete("fusion-pl", "fit", "--config", "comp") == ["completion.bash"]
    assert complete("fusion-pl", "compare", "--fus") == ["--fusions"]
    assert complete("fusion-pl", "da") == ["data"]
    assert complete("fusion-pl", "data", "") == ["check", "shard"]
    assert complete("fusion-pl", "data", "check", "--clea") == ["--cleaned"]


OPTIONAL = ("dill", "pynvml", "torchcomms", "tensorflow", "argcomplete")  # libraries look for them
HEAD = """
from fusion_pl.fusion import Mean


class MyHead(Mean):
    pass
"""


@pytest.fixture
def project(manifest, tmp_path):
    """A user's folder: a head of their own, a file that is named like an installed package, a configuration."""
    (tmp_path / "my_module.py").write_text(HEAD)
    for name in ("rich", *OPTIONAL):
        said = f"{name}.py of the current folder was taken for the package"
        (tmp_path / f"{name}.py").write_text(f"open({name!r} + '.ran', 'w')\nraise SystemExit({said!r})\n")
    (tmp_path / "needy.py").write_text("import not_installed_here\n")
    content = {
        "model": {
            "encoders": {"text": {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 8}}},
            "fusion": {"class_path": "my_module.MyHead", "init_args": {"dim": 8}},
        },
        "data": {"class_path": "fusion_pl.data.ManifestData",
                 "init_args": {"manifest": str(manifest), "num_workers": 0, "batch_size": 24}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "num_sanity_val_steps": 0},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    content["model"]["fusion"]["class_path"] = "fusion_pl.fusion.Mean"
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def run_as_script(folder, *commands):
    """Run commands in one process without the current folder on its path, like an installed script."""
    lines = [f"sys.argv = ['fusion-pl', *{list(map(str, words))!r}]; codes.append(main())" for words in commands]
    call = "import sys; from fusion_pl.__main__ import main; codes = []; " + "; ".join(lines) + "; print(codes)"
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", call], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_classes_of_the_current_folder_are_found(project, manifest):
    """Files with the names of optional packages of libraries are not imported."""
    plain, best = (f"lightning_logs/version_{run}/checkpoints/best.ckpt" for run in (0, 1))
    predict = ["predict", "--ckpt_path", best, "--data.manifest", manifest, "--output", "p.csv", "--overwrite"]
    ran = run_as_script(
        project,
        ["fit", "--help"],
        ["fit", "--config", "plain.yaml"],
        ["predict", "--ckpt_path", plain, "--data.manifest", manifest, "--output", "p.csv"],
        ["fit", "--config", "config.yaml"],
        ["test", "--config", "config.yaml"],
        predict,
        [*predict, "--trust", "my_module"],
        ["fit", "--config", "config.yaml", "--model.fusion", "my_modul.MyHead"],
        ["fit", "--config", "config.yaml", "--model.fusion", "needy.Head"],
        ["fit", "--config", "config.yaml", "--model.fusion", "my_module.MyHeat"],
    )
    assert ran.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 2, 0, 2, 2, 2]", ran.stderr
    assert not list(project.glob("*.ran"))
    errors = [line for line in ran.stderr.splitlines() if line.startswith("fusion-pl: error: ")]
    assert "--trust my_module" in errors[0]
    assert f"the current folder ({project}) or PYTHONPATH ({ROOT})" in errors[1]
    assert "needs 'not_installed_here'" in errors[2]
    assert "there is no class 'my_module.MyHeat'; did you mean MyHead?" in errors[3]
    assert "Traceback" not in ran.stderr


def test_a_closed_pipe_is_no_error():
    call = "import sys; from fusion_pl.__main__ import main; sys.argv = ['fusion-pl', '--help']; sys.exit(main())"
    read, write = os.pipe()
    os.close(read)  # nobody reads
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-P", "-c", call], env=environment, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_removed_current_folder_is_reported(tmp_path):
    call = f"import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('{tmp_path}/gone'); "
    call += "import sys; from fusion_pl.__main__ import main; sys.argv = ['fusion-pl', 'fit', '--help']; print(main())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", call], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.stdout == "2\n"
    assert ran.stderr == "fusion-pl: error: the current folder has been removed: change to another one\n"


def test_a_missing_module_of_a_checkpoint_is_reported_with_the_searched_places():
    with pytest.raises(UserError, match=r"no module 'gone_module' for gone_module.MyHead .* folder .* PYTHONPATH"):
        import_class("gone_module.MyHead", Fusion, trust=["gone_module"])
