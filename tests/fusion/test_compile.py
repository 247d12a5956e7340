"""A training step compiles in a fresh process, without the shape checks of the test suite."""

from __future__ import annotations

import inspect

import fusion_pl.fusion
from fusion_pl.fusion import Fusion
from tests.commands import run_command

CODE = """
import sys

import torch
from PIL import Image
from torch.nn import functional as F

import fusion_pl.fusion
from fusion_pl.data.collate import Collate
from fusion_pl.encoders import TinyImage, TinyText
from fusion_pl.training.loss import total_loss
from fusion_pl.types import Encoded, Sample

DIMS = {"title": 6, "photo": 10}
encoders = {"title": TinyText(dim=8), "photo": TinyImage(dim=8)}
collate = Collate({name: encoder.processor for name, encoder in encoders.items()}, training=True)


def batch_from(first):
    values = {"title": "x", "photo": Image.new("RGB", (8, 8))}
    return collate([Sample(f"s{row}", values, row % 4) for row in range(first, first + 8)])


def encoded():
    mask = torch.arange(3) < torch.randint(1, 4, (8, 1))
    return {name: Encoded(torch.randn(8, 3, dim), mask, torch.randn(8, dim)) for name, dim in DIMS.items()}


for name in sys.argv[1:]:
    head = getattr(fusion_pl.fusion, name)(DIMS, 4).train()

    def step(inputs, batch):
        def cross_entropy(logits, mask=None):
            losses = F.cross_entropy(logits, batch.target, reduction="none")
            return (losses if mask is None else losses.masked_fill(~mask, 0.0)).mean()

        held_out = head.held_out_mask(batch)
        return total_loss(head.loss(head(inputs), batch, cross_entropy)) + (0 if held_out is None else held_out.sum())

    torch.compiler.reset()
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    compiled(encoded(), batch_from(0)).backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(encoded(), batch_from(100)).backward()
    print(name)
"""


def test_the_loss_of_a_head_compiles_to_one_graph_for_all_batches():
    """For heads that override ``loss`` or ``held_out_mask``."""
    heads = {name: getattr(fusion_pl.fusion, name) for name in fusion_pl.fusion.__all__ if name != "Fusion"}
    own = [
        name
        for name, head in heads.items()
        if (head.loss, head.held_out_mask) != (Fusion.loss, Fusion.held_out_mask) and not inspect.isabstract(head)
    ]
    assert {"Stacking", "QualityAware"} <= set(own)
    found = run_command(*own, code=CODE)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.split() == own
