from __future__ import annotations

import math

import pytest
import torch

from fusion_pl.fusion import Block
from fusion_pl.types import UserError

from .reference import PRESENT, linear, mlp, projected_embeddings, randomised, zeros

DIM, CHUNKS, RANK = 6, 2, 3
SIZE = DIM // CHUNKS


def pooled_chunk(head, found, r):
    """Sum the products of all pairs in chunk r, and take the signed root, smoothed below 1e-4 (``signed_sqrt``)."""
    total = zeros(SIZE)
    for m in found:
        for n in found:
            if m < n:
                for k in range(RANK):
                    mine, other = (found[one][r * SIZE : (r + 1) * SIZE] @ head.factors[one, r, k] for one in (m, n))
                    total += mine * other
    return torch.stack([p / (p.abs() + 1e-4) ** 0.5 for p in total])


def test_equals_its_formula(dims, make):
    head, inputs = randomised(Block(dims, num_classes=4, dim=DIM, num_chunks=CHUNKS, rank=RANK)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        found = projected_embeddings(head, inputs, row)
        parts = [pooled_chunk(head, found, r) for r in range(CHUNKS)]
        lengths = [math.sqrt(sum(value.item() ** 2 for value in part)) for part in parts]
        joined = torch.cat([part / length if length else part for part, length in zip(parts, lengths, strict=True)])
        z = linear(head.joint_layer, joined) + sum(found.values(), zeros(DIM))
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, z))


def test_channels_of_different_chunks_are_not_multiplied(dims, make):
    """That is what a block-diagonal tensor means: change one chunk, and the others' products stay."""
    head, inputs = randomised(Block(dims, num_classes=4, dim=DIM, num_chunks=CHUNKS, rank=RANK)), make([[1, 1, 1]])
    seen = []
    head.joint_layer.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    head(inputs)
    with torch.no_grad():
        head.projection["título"].linear.weight[:SIZE] *= -1.5
    head(inputs)
    before, after = seen
    assert torch.equal(before[SIZE:], after[SIZE:])
    assert not torch.allclose(before[:SIZE], after[:SIZE])


def test_the_result_for_a_single_input_depends_on_it(dims, make):
    head = randomised(Block(dims, num_classes=4))
    first, second = (head(make([[1, 0, 0]], seed=seed)).logits for seed in (0, 1))
    assert (first - second).abs().max() > 1e-2


def test_the_gradient_without_a_pair_is_finite_in_half_precision(dims, make):
    head = Block(dims, num_classes=4).half()
    inputs = make([[1, 0, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.float16)
    head(inputs).logits.float().log_softmax(-1)[:, 0].mean().neg().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_refuses_chunks_of_unequal_size(dims):
    with pytest.raises(
        UserError, match="Block was given dim=10 and num_chunks=4: all chunks have the same size, so dim"
    ):
        Block(dims, num_classes=4, dim=10, num_chunks=4)
