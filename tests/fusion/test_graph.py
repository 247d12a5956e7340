from __future__ import annotations

import pytest
import torch

from fusion_pl.fusion import Graph

from .reference import PRESENT, gelu, linear, mlp, projected_embeddings, randomised, zeros

DIM = 4


def gru(cell, message, state):
    """Write a gated recurrent unit out; the rows of its matrices are the gates reset, update and new."""
    given = cell.weight_ih @ message + cell.bias_ih
    own = cell.weight_hh @ state + cell.bias_hh
    reset, update = (torch.sigmoid(given[g * DIM : (g + 1) * DIM] + own[g * DIM : (g + 1) * DIM]) for g in (0, 1))
    new = torch.tanh(given[2 * DIM :] + reset * own[2 * DIM :])
    return (1 - update) * new + update * state


@pytest.mark.parametrize("rounds", [1, 3])
def test_equals_its_formula(dims, make, rounds):
    head, inputs = randomised(Graph(dims, num_classes=4, dim=DIM, num_rounds=rounds)), make(PRESENT)
    fused = head(inputs)
    for row in range(len(PRESENT)):
        nodes = {m: u + head.embedding[m] for m, u in projected_embeddings(head, inputs, row).items()}
        for _ in range(rounds):
            after = {}
            for m, node in nodes.items():
                told = [
                    gelu(linear(head.target_linear, node) + linear(head.source_linear, nodes[k]))
                    for k in nodes
                    if k != m
                ]
                after[m] = gru(head.update, sum(told, zeros(DIM)) / max(len(told), 1), node)
            nodes = after
        z = sum(nodes.values(), zeros(DIM)) / max(len(nodes), 1)
        torch.testing.assert_close(fused.embedding[row], z)
        torch.testing.assert_close(fused.logits[row], mlp(head.classifier, z))


def test_a_missing_node_sends_no_messages_and_is_not_averaged(dims, make):
    """Without its third input the graph is that of two, though a third embedding is there."""
    two = dict(list(dims.items())[:2])
    head, smaller = randomised(Graph(dims, num_classes=4, dim=DIM)), Graph(two, num_classes=4, dim=DIM).double().eval()
    state = {key: value for key, value in head.state_dict().items() if "voice-2" not in key}
    smaller.load_state_dict(state | {"embedding": head.embedding[:2]})
    inputs = make([[1, 1, 0], [0, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(head(inputs).logits, smaller({name: inputs[name] for name in two}).logits)
