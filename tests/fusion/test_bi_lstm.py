from __future__ import annotations

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from fusion_pl.fusion import BiLSTM
from fusion_pl.fusion.bi_lstm import indices_with_padding_last
from fusion_pl.types import UserError

from .reference import randomised
from .reference_tokens import real_tokens

PRESENT = [[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]]


def outside(head, dim):
    """torch's own bidirectional network with the same weights."""
    twin = nn.LSTM(dim, dim, batch_first=True, bidirectional=True, dtype=torch.float64)
    weights = head.forwards.state_dict()
    weights |= {f"{name}_reverse": weight for name, weight in head.backwards.state_dict().items()}
    twin.load_state_dict(weights)
    return twin


def with_gaps(inputs):
    """Take a real token out of the middle, wherever an input has three or more."""
    gapped = {}
    for name, one in inputs.items():
        mask = one.mask.clone()
        mask[one.mask.sum(-1) > 2, 1] = False
        gapped[name] = one._replace(mask=mask)
    return gapped


def check(head, inputs, sequences):
    """Compare with the packed network; ``sequences`` holds each sample's real entries."""
    fused = head(inputs)
    rows = [row for row, sequence in enumerate(sequences) if sequence]
    packed = pack_sequence([torch.stack(sequences[row]) for row in rows], enforce_sorted=False)
    read, lengths = pad_packed_sequence(outside(head, 8)(packed)[0], batch_first=True)
    for row, states, length in zip(rows, read, lengths, strict=True):
        torch.testing.assert_close(fused.embedding[row], states[:length].mean(0))
    for row in set(range(len(sequences))) - set(rows):
        assert not fused.embedding[row].any()
    torch.testing.assert_close(fused.logits, head.classifier(fused.embedding))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_equals_a_packed_network_over_the_present_inputs(dims, make, count):
    chosen = dict(list(dims.items())[:count])
    head, inputs = randomised(BiLSTM(chosen, num_classes=4, dim=8)), make([table[-count:] for table in PRESENT])
    sequences = []
    for row in range(len(PRESENT)):
        own = [(head.projection[name], one) for name, one in inputs.items() if one.mask[row].any()]
        sequences.append([part.linear(part.norm(one.embedding[row])) for part, one in own])
    check(head, inputs, sequences)


@pytest.mark.parametrize("count", [1, 3])
def test_equals_a_packed_network_over_the_real_tokens(dims, make, count):
    chosen = dict(list(dims.items())[:count])
    head = randomised(BiLSTM(chosen, num_classes=4, over="tokens", dim=8))
    inputs = with_gaps(make([table[-count:] for table in PRESENT]))
    assert any((one.mask[:, 1:] & ~one.mask[:, :-1]).any() for one in inputs.values()), "no gap to step over"
    sequences = [[x for own in real_tokens(head.projection, inputs, row) for x in own] for row in range(len(PRESENT))]
    check(head, inputs, sequences)


def test_orders_put_real_entries_first():
    there, back = indices_with_padding_last(torch.tensor([[False, True, True, False, True], [False] * 5]))
    assert there[0, :3].tolist() == [1, 2, 4]
    assert back[0, :3].tolist() == [4, 2, 1]
    assert sorted(there[0].tolist()) == sorted(back[1].tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"over": "layers"}, "BiLSTM was given over='layers', expected inputs or tokens"),
        ({"dim": 0}, "BiLSTM was given dim=0, expected a whole number of at least 1"),
    ],
)
def test_refuses_invalid_arguments(dims, args, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user's Python does not check annotations
    with pytest.raises(UserError, match=message):
        BiLSTM(dims, num_classes=4, **args)
