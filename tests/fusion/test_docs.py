"""``docs/fusion.md`` tells the truth: its table is complete and its own head works, from a user's package."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
import yaml

import fusion_pl.fusion
from fusion_pl.fusion import Fusion
from fusion_pl.recipe import class_of, recipe_of
from fusion_pl.types import UserError

TEXT = (Path(__file__).parents[2] / "docs" / "fusion.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def test_the_table_has_every_head():
    rows = set(re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.MULTILINE))
    assert rows == set(fusion_pl.fusion.__all__) - {"Fusion"}


def test_every_shown_configuration_builds():
    shown = [line for block in blocks("yaml") for line in block.splitlines() if "class_path" in line]
    assert len(shown) == 5
    for line in shown:
        recipe = yaml.safe_load(line)["fusion"]
        args = recipe["init_args"]
        if isinstance(args.get("weights"), dict):
            args["weights"] = {name: float(weight) for name, weight in args["weights"].items()}
        head = class_of(recipe["class_path"], Fusion)({"text": 4, "image": 3, "audio": 2}, 5, **args)
        assert head.init_args | args == head.init_args


def test_its_own_head_works_from_another_package(tmp_path, monkeypatch, dims, make):
    (source,) = blocks("python")
    (tmp_path / "heads_of_a_user.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    head = importlib.import_module("heads_of_a_user").Largest(dims, 4, dim=16).double()
    inputs = make([[1, 1, 1], [1, 0, 1], [0, 0, 0]])
    spoilt = {
        name: one._replace(pooled=one.pooled.where(one.mask.any(-1, True), torch.nan)) for name, one in inputs.items()
    }
    logits = head(spoilt).logits
    assert torch.equal(logits, head(inputs).logits)
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    recipe = recipe_of(head, without={"dims", "num_classes"})
    assert recipe == {"class_path": "heads_of_a_user.Largest", "init_args": {"dim": 16}}
    assert class_of(recipe["class_path"], Fusion, trust=["heads_of_a_user"]) is type(head)
    with pytest.raises(UserError, match="--trust heads_of_a_user"):
        class_of(recipe["class_path"], Fusion)
