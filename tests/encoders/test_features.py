"""FeatureEncoder: values in memory, standardisation, padding, and the promises of every encoder."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch

from fusion_pl.config import config_of, import_class
from fusion_pl.encoders import Encoder, FeatureEncoder
from fusion_pl.encoders.moments import Moments
from fusion_pl.types import UserError
from tests.encoders.test_tiny import assert_same_row

RNG = np.random.default_rng(0)
VALUES = [RNG.normal(size=shape) for shape in [(4,), (7, 4), (1, 4), (3, 4)]]
OPTIONS = [{}, {"width": 5}, {"missing_numbers": "flag"}, {"num_layers": 0}]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


def build(**options):
    torch.manual_seed(0)
    return FeatureEncoder(**{"features": 4, "dim": 16, "dropout": 0.0} | options).eval()


def process(encoder, values):
    return encoder.processor([encoder.processor.open(value) for value in values])


@every_option
def test_shapes_masks_and_gradients(options):
    encoder = build(**options)
    out = encoder(**process(encoder, VALUES))
    assert out.tokens.shape == (4, 7, 16)
    assert out.mask.sum(1).tolist() == [1, 7, 1, 3]
    assert not out.tokens[~out.mask].any()
    assert out.embedding.isfinite().all()
    (out.embedding * torch.randn_like(out.embedding)).sum().backward()
    flags = "projection.weight"  # of numbers that are never missing, half of the columns have no gradient
    assert all(p.grad is not None and (p.grad.any() or name == flags) for name, p in encoder.named_parameters())


@every_option
def test_a_sample_depends_neither_on_its_batch_nor_on_padding(options):
    encoder = build(**options)
    together = encoder(**process(encoder, VALUES))
    for row, value in enumerate(VALUES):
        assert_same_row(together, row, encoder(**process(encoder, [value])))
    batch = process(encoder, VALUES)
    wide = encoder(
        torch.nn.functional.pad(batch["vectors"], (0, 0, 0, 5)), torch.nn.functional.pad(batch["mask"], (0, 5))
    )
    torch.testing.assert_close(wide.embedding, together.embedding)


def test_order_matters_only_to_wide_layers():
    sequence = VALUES[1]
    for width, is_same in ((1, True), (3, False)):
        encoder = build(width=width)
        first, second = encoder(**process(encoder, [sequence, sequence[::-1].copy()])).embedding
        assert torch.allclose(first, second, atol=1e-5) == is_same


def test_a_configuration_builds_the_same_encoder_and_the_weights_have_the_statistics():
    encoder = build(missing_numbers="flag", key="a")
    encoder.fit_statistics([encoder.processor.open(value) for value in VALUES])
    config = json.loads(json.dumps(config_of(encoder)))
    again = import_class(config["class_path"], Encoder).from_files(config["init_args"], "").eval()
    again.load_state_dict(encoder.state_dict())
    for copied in (again, copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(copied(**process(copied, VALUES)).embedding, encoder(**process(encoder, VALUES)).embedding)


def test_damaged_statistics_are_refused():
    encoder = build()
    state = encoder.state_dict()
    for wrong in (torch.zeros(2, 4), torch.full((2, 4), math.nan), torch.ones(2, 5), "text", None):
        with pytest.raises(UserError, match="mean and standard deviation of a FeatureEncoder are damaged"):
            encoder.load_state_dict(state | {"_extra_state": wrong})


def test_half_precision_keeps_small_differences_of_large_numbers():
    """Times in seconds since 1970, one second apart: float32 has steps of 128 seconds there."""
    encoder = build(features=1)
    times = [[1.7e9 + second] for second in range(10)]
    encoder.fit_statistics([encoder.processor.open(value) for value in times])
    exact = process(encoder, times)["vectors"].flatten()
    torch.testing.assert_close(exact, torch.tensor((np.arange(10) - 4.5) / np.arange(10).std(), dtype=torch.float32))
    half = copy.deepcopy(encoder).bfloat16()
    assert torch.equal(process(half, times)["vectors"].flatten(), exact)
    out = half(**process(half, times)).embedding
    assert out.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(**process(encoder, times)).embedding
    wanted = encoder(**process(encoder, times)).embedding
    assert torch.cosine_similarity(rough.float(), wanted, dim=-1).min() > 0.98


def test_large_numbers_in_single_precision_depend_on_no_other_sample():
    """Near 2e7 float32 has steps of 2, so that a mean in float32 is wrong by up to one."""
    encoder = build(features=1)
    numbers = np.array([2e7, 2e7 + 2, 2e7 + 6], "float32")
    encoder.fit_statistics(encoder.processor.open(number) for number in numbers[:, None])
    exact = numbers.astype("float64")
    wanted = (exact - exact.mean()) / exact.std()
    for others in ([], [[2e7 + 1]]):  # lists are float64
        vectors = process(encoder, [*numbers[:, None], *others])["vectors"][:3]
        np.testing.assert_allclose(vectors.flatten(), wanted, rtol=1e-6)


def test_standardisation_is_that_of_numpy_over_all_vectors():
    encoder = build()
    vectors = np.concatenate([np.atleast_2d(value) for value in VALUES])
    encoder.fit_statistics(encoder.processor.open(value) for value in VALUES)
    batch = process(encoder, VALUES)
    wanted = (vectors - vectors.mean(0)) / vectors.std(0)
    np.testing.assert_allclose(batch["vectors"][batch["mask"]], wanted, rtol=1e-5, atol=1e-6)
    unchanged = build(standardise=False)
    unchanged.fit_statistics(unchanged.processor.open(value) for value in VALUES)
    batch = process(unchanged, VALUES)
    np.testing.assert_allclose(batch["vectors"][batch["mask"]], vectors, rtol=1e-6)


@pytest.mark.parametrize("sizes", [[1] * 50, [50], [3, 40, 7]])
def test_moments_are_those_of_numpy_for_any_chunks(sizes):
    vectors = RNG.normal(loc=[0, 1e9, -5], scale=[1, 1, 1e-3], size=(50, 3))
    vectors[RNG.random((50, 3)) < 0.3] = math.nan
    moments = Moments(3)
    for chunk in np.split(vectors, np.cumsum(sizes)[:-1]):
        moments.update(torch.from_numpy(chunk))
    np.testing.assert_allclose(moments.mean, np.nanmean(vectors, 0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, np.nanstd(vectors, 0), rtol=1e-6)


def test_constant_absent_and_tiny_numbers_are_not_divided_by_zero():
    encoder = build()
    rows = [[0.1, None, 1e-200, 1e30], [0.1, None, 2e-200, -1e30], [0.1, None, 3e-200, 1e30]] * 7
    encoder = build(missing_numbers="flag")
    encoder.fit_statistics(encoder.processor.open(row) for row in rows)
    vectors = process(encoder, rows)["vectors"]
    assert vectors.isfinite().all()
    assert not vectors[:, 0, 0].any()
    assert vectors[:, 0, 5].all()  # the flag of the number that is always missing
    assert encoder.processor.std[:2].tolist() == [1, 1]


def test_a_missing_number_is_the_mean_with_a_flag():
    encoder = build(features=2, missing_numbers="flag")
    rows = [[1.0, 10.0], [3.0, None], [5.0, 30.0], [3.0, math.nan]]
    encoder.fit_statistics(encoder.processor.open(row) for row in rows)
    std = [np.std([1, 3, 5, 3]), np.std([10, 30])]
    wanted = [[-2 / std[0], -10 / std[1], 0, 0], [0, 0, 0, 1], [2 / std[0], 10 / std[1], 0, 0], [0, 0, 0, 1]]
    np.testing.assert_allclose(process(encoder, rows)["vectors"][:, 0], wanted, rtol=1e-6)
    assert not encoder.processor.is_missing([None, 1])
    assert encoder.processor.is_missing([None, None])
    strict = build(features=2)
    for value, one_is_missing, all_are in (
        ((None, 1), True, False),
        ([1, math.nan], True, False),
        ([[1, 2], [np.float32("nan"), 3]], True, False),
        ([None, math.nan], True, True),
        ([[None, None], [None, None]], True, True),
        (["1", 2], False, False),
        (["nan", 2], False, False),
        ([[1, 2], [3, 4]], False, False),
        ([], False, False),
        ([[]], False, False),
    ):
        assert strict.processor.is_missing(value) == one_is_missing
        assert encoder.processor.is_missing(value) == all_are
    with pytest.raises(
        UserError, match="lacks number 2: leave the whole input out, or train with missing_numbers: flag"
    ):
        strict.processor.open([1, None])


def test_long_sequences_are_truncated():
    encoder = build(max_tokens=2)
    opened = encoder.processor.open(VALUES[1])
    assert encoder.processor([opened])["vectors"].shape == (1, 2, 4)
    assert encoder.processor.length(opened) == (7, 2, "vectors")
    encoder.fit_statistics([opened])
    np.testing.assert_allclose(encoder.processor.mean, VALUES[1][:2].mean(0))


@pytest.mark.parametrize(
    ("save", "order", "is_read"), [(np.save, "C", False), (np.save, "F", True), (np.savez, "C", True)]
)
def test_of_a_long_file_only_the_vectors_that_the_encoder_reads_are_read(tmp_path, save, order, is_read):
    """The data check opens all of them, and finds a wrong number after the last one that is read."""
    vectors = np.arange(40.0).reshape(10, 4)
    vectors[7, 2] = math.nan
    with (tmp_path / "a").open("wb") as file:
        save(file, np.asarray(vectors, order=order))
    processor = build(max_tokens=3).processor
    for open_file in (processor.open_whole, *([processor.open] if is_read else [])):
        with pytest.raises(UserError, match="has nan as number 3 of vector 8"):
            open_file(tmp_path / "a")
    if not is_read:
        for source in (tmp_path / "a", (tmp_path / "a").read_bytes()):
            np.testing.assert_array_equal(processor.open(source), vectors[:3])


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, 2, 3, 4]),
        np.array([1, 2, 3, 4], "float16"),
        torch.tensor([1, 2, 3, 4], dtype=torch.bfloat16),
        torch.tensor([[1.0, 2, 3, 4]]),
        [1, 2.0, np.float32(3), 4],
        ("1", "2.0", " 3 ", "4e0"),
        [[1, 2, 3, 4]],
    ],
)
def test_all_forms_of_a_vector_are_opened(value):
    encoder = build()
    assert process(encoder, [value])["vectors"].flatten().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            [1, 2, 3],
            "the input has 3 numbers, expected 4 numbers, or T vectors of 4 numbers: correct it, or set features",
        ),
        (
            np.zeros((3, 5)),
            r"the input has the shape \(3, 5\), expected 4 numbers.* set features of the FeatureEncoder to 5",
        ),
        (np.zeros((2, 3, 4)), r"has the shape \(2, 3, 4\)"),
        (np.array(3.0), "the input has the shape"),
        (np.zeros((0, 4)), "the input has no vectors"),
        ([], "the input has 0 numbers"),
        ([1, "a", 3, 4], "the input has 'a' as number 2, expected a number"),
        ([1, {}, 3, 4], "the input has {} as number 2"),
        ([[1, 2, 3, 4], [5]], "list of lists of different lengths"),
        ([1, "nan", 3, 4], "the input has nan as number 2, expected a finite number"),
        (np.array([[1, 2, 3, 4], [1, 2, -math.inf, 4]]), "the input has -inf as number 3 of vector 2"),
        ([1, 2, 3, 1e300], r"the input has 1e\+300 as number 4, expected a finite number in single precision"),
        (np.array(["a"] * 4), "takes a path, bytes, an array or a list, got ndarray"),
        (np.array([None] * 4), "takes a path, bytes, an array or a list, got ndarray"),
        ({"a": 1}, "takes a path, bytes, an array or a list, got dict"),
    ],
)
@pytest.mark.parametrize("missing_numbers", ["input", "flag"])
def test_other_values_are_refused(value, message, missing_numbers):
    with pytest.raises(UserError, match=message):
        build(missing_numbers=missing_numbers).processor.open(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 0}, r"FeatureEncoder\(features=0\): expected 1 or more"),
        ({"max_tokens": 0}, r"FeatureEncoder\(max_tokens=0\): expected 1 or more"),
        ({"width": 2}, r"FeatureEncoder\(width=2\): expected an odd number"),
        ({"dim": 30}, r"FeatureEncoder\(dim=30\): expected a positive multiple of 8"),
        ({"num_layers": -1}, r"FeatureEncoder\(num_layers=-1\): expected 0 or more"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)
