"""``docs/fusion.md``: the table is complete, and the example head works in another package."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

import fusion_pl.fusion
from fusion_pl.cli.run import run
from fusion_pl.config import config_of, import_class
from fusion_pl.fusion import Fusion
from fusion_pl.types import UserError
from tests.commands import run_command

TEXT = (Path(__file__).parents[2] / "docs" / "fusion.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_table_has_every_head():
    rows = set(re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.MULTILINE))
    assert rows == set(fusion_pl.fusion.__all__) - {"Fusion"}


def test_every_configuration_in_the_guide_builds():
    shown = [line for block in blocks("yaml") for line in block.splitlines() if "class_path" in line]
    assert len(shown) == 5
    for line in shown:
        config = yaml.safe_load(line)["fusion"]
        args = config["init_args"]
        if isinstance(args.get("weights"), dict):
            args["weights"] = {name: float(weight) for name, weight in args["weights"].items()}
        head = import_class(config["class_path"], Fusion)({"text": 4, "image": 3, "audio": 2}, 5, **args)
        assert head.init_args | args == head.init_args


def test_the_example_head_works_from_another_package(tmp_path, monkeypatch, dims, make):
    (source,) = blocks("python")
    (tmp_path / "heads_of_a_user.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    head = importlib.import_module("heads_of_a_user").Largest(dims, 4, dim=16).double()
    inputs = make([[1, 1, 1], [1, 0, 1], [0, 0, 0]])
    with_nan = {
        name: one._replace(embedding=one.embedding.where(one.mask.any(-1, True), torch.nan))
        for name, one in inputs.items()
    }
    logits = head(with_nan).logits
    assert torch.equal(logits, head(inputs).logits)
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    config = config_of(head, omit={"dims", "num_classes"})
    assert config == {"class_path": "heads_of_a_user.Largest", "init_args": {"dim": 16}}
    assert import_class(config["class_path"], Fusion, trust=["heads_of_a_user"]) is type(head)
    with pytest.raises(UserError, match="--trust heads_of_a_user"):
        import_class(config["class_path"], Fusion)


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """Return the current folder, from which modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    yield tmp_path
    for name in ("heads_of_a_user", "broken_heads"):
        sys.modules.pop(name, None)


def test_the_example_head_trains_and_predicts_in_another_process(user_folder, manifest):
    (source,) = blocks("python")
    (user_folder / "heads_of_a_user.py").write_text(source, encoding="utf-8")
    config = {
        "model": {
            "encoders": {"text": {"class_path": "fusion_pl.encoders.TinyText", "init_args": {"dim": 8}}},
            "fusion": {"class_path": "heads_of_a_user.Largest", "init_args": {"dim": 16}},
        },
        "data": {
            "class_path": "fusion_pl.data.ManifestData",
            "init_args": {"manifest": str(manifest), "num_workers": 0},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (user_folder / "own.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    assert run("fit", ["--config", "own.yaml"]) == 0
    (checkpoint,) = user_folder.glob("lightning_logs/version_0/checkpoints/best.ckpt")
    predict = ["--ckpt_path", str(checkpoint), "--data.manifest", str(manifest), "--output", "out.jsonl"]
    code = f"from fusion_pl.cli.run import run; refused = run('predict', {predict}); "
    code += f"print([refused, run('predict', [*{predict}, '--trust', 'heads_of_a_user'])])"
    done = run_command(code=code, environment={"PYTHONPATH": str(user_folder)})
    assert done.stdout.splitlines()[-1:] == ["[2, 0]"], done.stderr
    assert "--trust heads_of_a_user" in done.stderr
    lines = (user_folder / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 48
    assert {json.loads(line)["label"] for line in lines} <= {"high", "low"}


def test_a_head_whose_module_cannot_be_imported_is_reported(user_folder, capsys):
    (user_folder / "broken_heads.py").write_text("from fusion_pl.fusion import Nothing\n", encoding="utf-8")
    model = {
        "encoders": {"text": {"class_path": "fusion_pl.encoders.TinyText"}},
        "fusion": {"class_path": "broken_heads.Head", "init_args": {"dim": 16}},
    }
    (user_folder / "own.yaml").write_text(yaml.safe_dump({"model": model}), encoding="utf-8")
    assert run("fit", ["--config", "own.yaml", "--data", "fusion_pl.data.Keypad"]) == 2
    error = capsys.readouterr().err
    assert "broken_heads.Head cannot be imported: cannot import name 'Nothing'" in error
    assert error.count("\n") == 1
