from __future__ import annotations

import pytest
import torch

from fusion_pl.fusion import Bottleneck
from fusion_pl.types import UserError

from .reference import randomised
from .reference_tokens import mean, real_tokens, transform

PRESENT = [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]
SHARED = 2


def restate(head, inputs, row):
    """Only real tokens of present inputs exist, and every token is handled by itself."""
    given = dict(enumerate(real_tokens(head.projection, inputs, row)))
    given = {m: own for m, own in given.items() if own}
    shared = list(head.bottlenecks)
    for layers in head.layers:
        said = []
        for m, own in given.items():
            seen = own + shared
            said.append([transform(layers[m], one, seen) for one in shared])
            given[m] = [transform(layers[m], one, seen) for one in own]
        shared = [mean(list(versions)) for versions in zip(*said, strict=True)]
    embedding = [mean([head.norm(one) for one in own]) for own in given.values()]
    return mean(embedding) if embedding else torch.zeros_like(head.norm.bias)


@pytest.mark.parametrize(("count", "num_layers"), [(1, 2), (2, 3), (3, 2)])
def test_equals_its_formula(dims, make, count, num_layers):
    chosen = dict(list(dims.items())[:count])
    head = randomised(
        Bottleneck(chosen, num_classes=4, dim=8, num_heads=2, num_layers=num_layers, num_bottlenecks=SHARED)
    )
    inputs = make([table[-count:] for table in PRESENT])
    fused = head(inputs)
    for row in range(len(PRESENT)):
        expected = restate(head, inputs, row)
        torch.testing.assert_close(fused.embedding[row], expected)
        torch.testing.assert_close(fused.logits[row], head.classifier(expected))


def watch(head, inputs):
    """Return what each layer of each input says: (layer, input) -> shared tokens and own ones."""
    seen, hooks = {}, []
    for n, layers in enumerate(head.layers):
        for m, layer in enumerate(layers):

            def note(module, args, output, key=(n, m)):
                seen[key] = output.detach()

            hooks.append(layer.register_forward_hook(note))
    head(inputs)
    for hook in hooks:
        hook.remove()
    return seen


def test_inputs_meet_in_the_second_layer_and_only_through_the_shared_tokens(dims, make):
    head = randomised(Bottleneck(dims, num_classes=4, dim=8, num_heads=2, num_layers=3, num_bottlenecks=SHARED))
    inputs = make([[1, 1, 1]])
    first = next(iter(dims))
    other = inputs | {first: inputs[first]._replace(tokens=inputs[first].tokens * -2 + 1)}
    before, after = watch(head, inputs), watch(head, other)
    changed = {key: not torch.equal(before[key], after[key]) for key in before}
    assert changed == {(n, m): m == 0 or n > 0 for n in range(3) for m in range(3)}

    # If the bottleneck tokens of the changed input stay the same, the other inputs do not change in any layer.
    for n, layers in enumerate(head.layers):
        said = before[n, 0][:, :SHARED]
        layers[0].register_forward_hook(lambda _, args, output, said=said: torch.cat([said, output[:, SHARED:]], dim=1))
    held = watch(head, other)
    assert all(torch.equal(before[n, m], held[n, m]) for n in range(3) for m in (1, 2))
    assert not torch.equal(before[2, 0][:, SHARED:], held[2, 0][:, SHARED:])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"num_layers": 1}, "Bottleneck was given num_layers=1, expected at least 2"),
        ({"num_bottlenecks": 0}, "Bottleneck was given num_bottlenecks=0, expected a whole number of at least 1"),
        ({"dim": 10, "num_heads": 4}, "Bottleneck was given dim=10 and num_heads=4: .* must be a multiple"),
    ],
)
def test_refuses_invalid_arguments(dims, args, message):
    with pytest.raises(UserError, match=message):
        Bottleneck(dims, num_classes=4, **args)
