"""Checks for every ``Fusion`` in ``fusion_pl.fusion``.

New heads are found automatically. A head with arguments that change its behaviour adds them to ``VARIANTS``.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import json
import pickle
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fusion_pl.fusion
from fusion_pl.config import config_of, import_class
from fusion_pl.fusion import Fusion
from fusion_pl.types import Encoded, Fused, UserError

CLASSES = 4
COUNTS = (1, 2, 3)
NAN = float("nan")
FIXED_WEIGHTS = "a number per input"  # replaced by {name: 1.0, name: 2.0, ...}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "Weighted": [{"weights": "global"}, {"weights": FIXED_WEIGHTS}],
    "BiLSTM": [{"over": "tokens"}],
    "Average": [{"weights": "sample"}, {"weights": "global"}, {"weights": FIXED_WEIGHTS}],
}


def discover() -> Iterator[type[Fusion]]:
    package = fusion_pl.fusion
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        for _, member in inspect.getmembers(importlib.import_module(found.name), inspect.isclass):
            if issubclass(member, Fusion) and not inspect.isabstract(member) and member.__module__ == found.name:
                yield member


HEADS = sorted(discover(), key=lambda head: head.__name__)
CASES = [
    pytest.param(head, args, id="-".join([head.__name__, *map(str, args.values())]))
    for head in HEADS
    for args in [{}, *VARIANTS.get(head.__name__, [])]
]
every_head = pytest.mark.parametrize(("head", "args"), CASES)
every_count = pytest.mark.parametrize("count", COUNTS)


@pytest.fixture
def build(dims):
    """Return a function that builds a head with randomly changed parameters, as zeros could hide an error."""

    def _build(head: type[Fusion], args: dict[str, Any], count: int, dtype: torch.dtype = torch.float64) -> Fusion:
        chosen = dict(list(dims.items())[:count])
        given = {name: float(i) for i, name in enumerate(chosen, start=1)}
        torch.manual_seed(0)
        built = head(
            chosen, CLASSES, **{key: given if value == FIXED_WEIGHTS else value for key, value in args.items()}
        )
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return built.to(dtype).eval()

    return _build


def subsets(count: int) -> list[list[int]]:
    """Return every combination of present inputs, including none."""
    return [list(one) for one in itertools.product([1, 0], repeat=count)]


def outputs(fused: Fused) -> dict[str, Tensor]:
    """Return all tensors of a result by name."""
    named = {"logits": fused.logits, "embedding": fused.embedding, "weights": fused.weights, **fused.input_logits}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def fill_with_nan(inputs: dict[str, Encoded]) -> dict[str, Encoded]:
    """Set padding and all values of missing inputs to NaN."""
    return {
        name: Encoded(
            one.tokens.masked_fill(~one.mask.unsqueeze(-1), NAN),
            one.mask,
            one.embedding.masked_fill(~one.mask.any(-1, keepdim=True), NAN),
        )
        for name, one in inputs.items()
    }


def loss_of(fused: Fused) -> Tensor:
    target = torch.arange(len(fused.logits)) % CLASSES
    return torch.nn.functional.cross_entropy(fused.logits, target)


def leaves(tensor: Tensor) -> Iterator[Tensor]:
    """Walk a graph back to the tensors that backward would fill."""
    seen, stack = set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack += [previous for previous, _ in node.next_functions]


def test_finds_the_exported_heads():
    exported = {getattr(fusion_pl.fusion, name) for name in fusion_pl.fusion.__all__} - {Fusion}
    assert exported
    assert exported == set(HEADS), "every head of the package is exported, and only heads are"
    assert set(VARIANTS) <= {head.__name__ for head in HEADS}


@pytest.mark.parametrize("head", HEADS)
def test_needs_nothing_but_dims_and_num_classes(head):
    first, second, *own = inspect.signature(head).parameters.values()
    assert (first.name, second.name) == ("dims", "num_classes")
    assert [one.name for one in own if one.default is inspect.Parameter.empty] == []
    assert len(own) <= 6


@pytest.mark.parametrize("head", HEADS)
def test_refuses_to_fuse_nothing(head):
    with pytest.raises(UserError, match=r"at least one input: add one to model\.encoders"):
        head({}, CLASSES)


@every_head
@every_count
def test_shapes_and_finite_for_every_subset(head, args, count, build, make):
    present = subsets(count)
    fused = build(head, args, count)(make(present))
    assert fused.logits.shape == (len(present), CLASSES)
    assert fused.embedding is None or fused.embedding.shape[0] == len(present)
    assert fused.embedding is None or fused.embedding.dim() == 2
    assert list(fused.input_logits) in ([], list(make(present)))
    assert all(one.shape == fused.logits.shape for one in fused.input_logits.values())
    for name, tensor in outputs(fused).items():
        assert tensor.isfinite().all(), name


@every_head
@every_count
def test_weights_sum_to_one_over_the_present(head, args, count, build, make):
    present = subsets(count)
    weights = build(head, args, count)(make(present)).weights
    if weights is None:
        return
    table = torch.tensor(present, dtype=weights.dtype)
    assert weights.shape == table.shape
    assert (weights >= 0).all()
    assert (weights[table == 0] == 0).all()
    torch.testing.assert_close(weights.sum(-1), table.amax(-1))


@every_head
def test_weights_sum_to_one_for_large_parameters(head, args, build, make):
    """With large parameters, exponentials underflow in single precision."""
    present = subsets(3)
    fusion, table = build(head, args, 3, torch.float32), torch.tensor(present, dtype=torch.float32)
    for sign in (1, -1):
        far = copy.deepcopy(fusion)
        with torch.no_grad():
            for name, parameter in far.named_parameters():
                parameter.copy_(sign * (300 + parameter) if name.endswith("bias") else 10 * parameter)
        weights = far(make(present, torch.float32)).weights
        if weights is not None:
            torch.testing.assert_close(weights.sum(-1), table.amax(-1))


@every_head
@every_count
def test_values_under_a_false_mask_do_not_change_the_result(head, args, count, build, make):
    fusion, inputs = build(head, args, count), make(subsets(count))
    clean, with_nan = outputs(fusion(inputs)), outputs(fusion(fill_with_nan(inputs)))
    assert clean.keys() == with_nan.keys()
    for name, tensor in clean.items():
        assert torch.equal(tensor, with_nan[name]), name


@every_head
def test_a_head_that_reads_no_tokens_gives_the_same_result_for_embeddings_as_tokens(head, args, build, make):
    """As stored features have them, for present inputs; and the others do read tokens."""
    fusion, inputs = build(head, args, 3), make(subsets(3))
    stored = {
        name: Encoded(one.embedding.unsqueeze(1), one.mask.any(1, keepdim=True), one.embedding)
        for name, one in inputs.items()
    }
    expected, found = outputs(fusion(inputs)), outputs(fusion(stored))
    assert fusion.reads_tokens != all(torch.equal(expected[name], found[name]) for name in expected)


@every_head
@every_count
def test_padding_changes_nothing(head, args, count, build, make):
    fusion, inputs = build(head, args, count), make(subsets(count))
    padded = {
        name: Encoded(
            torch.nn.functional.pad(one.tokens, (0, 0, 0, extra), value=NAN),
            torch.nn.functional.pad(one.mask, (0, extra)),
            one.embedding,
        )
        for extra, (name, one) in enumerate(inputs.items(), start=1)
    }
    expected = outputs(fusion(inputs))
    for name, tensor in outputs(fusion(padded)).items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


@every_head
@every_count
def test_padding_may_be_on_the_left(head, args, count, build, make):
    """Positions are counted from the first real token, because some tokenizers pad on the left."""
    fusion, inputs = build(head, args, count), make(subsets(count) * 2)
    left = {}
    for name, one in inputs.items():
        turn = (torch.arange(one.mask.shape[1]) + one.mask.sum(-1, keepdim=True)) % one.mask.shape[1]
        tokens = one.tokens.gather(1, turn.unsqueeze(-1).expand_as(one.tokens))
        left[name] = Encoded(tokens, one.mask.gather(1, turn), one.embedding)
    assert any(not one.mask[:, 0].all() for one in left.values())
    expected = outputs(fusion(inputs))
    for name, tensor in outputs(fusion(left)).items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


@every_head
@every_count
def test_a_sample_does_not_depend_on_its_batch(head, args, count, build, make):
    fusion, inputs = build(head, args, count), make(subsets(count) * 2)
    expected = outputs(fusion(inputs))
    order = torch.randperm(2 ** (count + 1), generator=torch.Generator().manual_seed(1))
    for rows in (order, order[:1], order[::2]):
        chosen = {name: Encoded(one.tokens[rows], one.mask[rows], one.embedding[rows]) for name, one in inputs.items()}
        for name, tensor in outputs(fusion(chosen)).items():
            torch.testing.assert_close(tensor, expected[name][rows], msg=name)


@every_head
def test_every_present_input_changes_the_result(head, args, build, make):
    fusion, inputs = build(head, args, 3), make([[1, 1, 1]] * 2)
    expected, other = fusion(inputs).logits, make([[1, 1, 1]] * 2, seed=1)
    for name in inputs:
        assert not torch.allclose(fusion(inputs | {name: other[name]}).logits, expected), name


@every_head
@every_count
def test_every_parameter_has_a_finite_gradient_for_every_missing_input(head, args, count, build, make):
    for present in ([1] * count, [0] + [1] * (count - 1), [0] * count):
        fusion = build(head, args, count).train()
        inputs = fill_with_nan(make([present] * 3))
        for one in inputs.values():
            one.tokens.requires_grad_()
            one.embedding.requires_grad_()
        loss_of(fusion(inputs)).backward()
        for name, parameter in fusion.named_parameters():
            assert parameter.grad is not None, f"{name} takes no part"
            assert parameter.grad.isfinite().all(), name
        for tensor in (tensor for one in inputs.values() for tensor in (one.tokens, one.embedding)):
            assert tensor.grad is None or tensor.grad.isfinite().all()


@every_head
def test_no_parameter_is_without_effect(head, args, build, make):
    fusion = build(head, args, 3)
    # Several of each kind: where an input has one token, attention has no choice and its query no gradient.
    loss_of(fusion(make([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]] * 3))).backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad.abs().max() > 1e-9, name


@every_head
def test_every_trained_tensor_is_in_the_state_dict(head, args, build, make):
    fusion = build(head, args, 3)
    known = {id(parameter) for parameter in fusion.parameters()}
    assert {id(leaf) for leaf in leaves(fusion(make([[1, 1, 1]])).logits)} == known
    assert {name for name, _ in fusion.named_parameters()} <= set(fusion.state_dict())


@every_head
@every_count
def test_trains_with_missing_inputs(head, args, count, build, make):
    # The samples are noise, so only a head that uses its inputs can fit them.
    present = (subsets(count)[:-1] * 12)[:12]
    fusion, inputs = build(head, args, count, torch.float32).train(), make(present, torch.float32)
    target = torch.arange(len(present)) % CLASSES
    optimizer = torch.optim.AdamW(fusion.parameters(), lr=3e-3)
    for step in range(1, 81):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(fusion(inputs).logits, target).backward()
        optimizer.step()
        if step % 5 == 0:
            predicted = fusion.eval()(inputs).logits.argmax(-1)
            if torch.equal(predicted, target):
                return
            fusion.train()
    pytest.fail(f"after {step} steps, {predicted.tolist()} is predicted for {target.tolist()}")


@every_head
def test_eval_is_deterministic_and_changes_no_state(head, args, build, make):
    fusion, inputs = build(head, args, 3), make(subsets(3))
    before = copy.deepcopy(fusion.state_dict())
    first, second = outputs(fusion(inputs)), outputs(fusion(inputs))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in fusion.state_dict().items())


@every_head
@pytest.mark.parametrize("again", [copy.deepcopy, lambda fusion: pickle.loads(pickle.dumps(fusion))])
def test_can_be_copied_and_pickled(head, args, again, build, make):
    fusion, inputs = build(head, args, 2), make(subsets(2))
    assert torch.equal(again(fusion)(inputs).logits, fusion(inputs).logits)


@every_head
@every_count
def test_its_config_builds_it_again(head, args, count, build, make):
    fusion, inputs = build(head, args, count), make(subsets(count))
    config = json.loads(json.dumps(config_of(fusion, omit={"dims", "num_classes"})))
    dims = {name: one.embedding.shape[-1] for name, one in inputs.items()}
    again = import_class(config["class_path"], Fusion)(dims, CLASSES, **config["init_args"]).double().eval()
    again.load_state_dict(fusion.state_dict())
    assert type(again) is head
    torch.testing.assert_close(again(inputs).logits, fusion(inputs).logits)


@every_head
def test_bfloat16_autocast(head, args, build, make):
    fusion, inputs = build(head, args, 3, torch.float32), fill_with_nan(make(subsets(3), torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        fused = fusion(inputs)
        loss = loss_of(fused)
    loss.backward()
    full = outputs(fusion(inputs))
    for name, tensor in outputs(fused).items():
        torch.testing.assert_close(tensor.float(), full[name], atol=0.1, rtol=0.1, msg=name)
    assert all(parameter.grad.isfinite().all() for parameter in fusion.parameters())


@every_head
def test_exports_with_a_dynamic_batch(head, args, build, make):
    fusion = build(head, args, 2, torch.float32)
    batch = {0: torch.export.Dim("batch", min=2)}
    example, other = make(subsets(2), torch.float32), make(subsets(2)[:3], torch.float32, seed=1)
    shapes = {name: Encoded(batch, batch, batch) for name in example}
    exported = torch.export.export(fusion, (example,), dynamic_shapes=(shapes,), strict=False).module()
    torch.testing.assert_close(exported(other).logits, fusion(other).logits)


@every_head
def test_no_einsum_has_more_than_two_operands(head, args, build, make, monkeypatch):
    """With opt_einsum installed, torch orders more of them by their sizes, and an export holds for one batch size."""
    einsum = torch.einsum

    def checked(equation, *operands):
        assert len(operands) <= 2, f"{equation}: write it as several"
        return einsum(equation, *operands)

    fusion, inputs = build(head, args, 3), make(subsets(3))
    monkeypatch.setattr(torch, "einsum", checked)
    fusion(inputs)
