"""The documented cost of a head, in its docstring and in ``docs/fusion.md``, equals the count of torch."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

import fusion_pl.fusion
from fusion_pl.analysis.costs import count_flops
from fusion_pl.types import Encoded

from .test_docs import TEXT

M, D, T, C = 3, 96, 40, 5
TOLERANCE = 0.1  # of the count: the last layer's F C, biases and flags are left out of the formulas
SMALL = {"TensorFusion": 12, "MultiplicativeInteractions": 48, "HyperNetwork": 48}  # F; 128 elsewhere
LETTERS = {  # what an argument is called in formulas
    "num_layers": "L", "num_rounds": "L", "num_experts": "K", "hidden": "h", "num_latents": "N", "num_bottlenecks": "N",
    "num_chunks": "R",
}  # fmt: skip
HEADS = sorted(set(fusion_pl.fusion.__all__) - {"Fusion"})


def count_multiply_adds(head) -> float:
    encoded = Encoded(torch.randn(2, T, D), torch.ones(2, T, dtype=torch.bool), torch.randn(2, D))
    operations = count_flops(lambda: head.eval()(dict.fromkeys(head.names, encoded)))
    return operations / 2 / 2  # a multiply-add is two operations, and there are two samples


def evaluate(formula: str, letters: dict[str, float]) -> float:
    """Evaluate a formula as it is written: ``M D F + 2 M F²``, ``(F + 1)^M h``, ``Σ (T_m + N)²``."""
    formula = formula.replace("T_m", "T").replace("Σ", "M").replace("²", "**2").replace("³", "**3").replace("^", "**")
    python = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", formula)
    return eval(python, {"__builtins__": {}}, letters)


def build(name: str):
    kind = getattr(fusion_pl.fusion, name)
    dim = SMALL.get(name, 128)
    head = kind(dict.fromkeys(("a", "b", "c")[:M], D), C, dim=dim)
    given = {key: value.default for key, value in inspect.signature(kind).parameters.items()}
    tokens = M if given.get("over") == "inputs" else M * T + (name == "SelfAttention")
    letters = {"M": M, "D": D, "T": T, "C": C, "S": tokens, "F": dim}
    return head, letters | {letter: given[argument] for argument, letter in LETTERS.items() if argument in given} | {
        argument: given[argument] for argument in ("rank", "factor") if argument in given
    }


@pytest.mark.parametrize("name", HEADS)
def test_source_and_cost_are_documented_in_docstring_and_guide(name):
    about = getattr(fusion_pl.fusion, name).__doc__
    assert "\n    Source: " in about
    (formula,) = re.findall(r"Cost: ``(.+?)``", about)
    head, letters = build(name)
    assert evaluate(formula, letters) == pytest.approx(count_multiply_adds(head), rel=TOLERANCE)
    guide = TEXT.partition("## Measured")[0]
    assert re.findall(rf"^\| `{name}` \|.*\| `(.+?)`[^|]*\|$", guide, flags=re.MULTILINE) == [formula]
