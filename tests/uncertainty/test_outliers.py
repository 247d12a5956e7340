"""Outlier detectors: the covariance of scikit-learn, a slow restatement of the distance, and the level of p-values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

from fusion_pl.types import Encoded, Fused, UserError
from fusion_pl.uncertainty.outliers import (
    Embeddings,
    OutlierDetector,
    detectors_config,
    embeddings_of,
    fit_detectors,
    read_detectors,
    shrunk_covariance,
)


def draw(samples, seed=0, dim=6):
    """Three classes with one covariance."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99))
    target = torch.arange(samples) % 3
    return torch.randn(samples, dim, generator=random) @ mixing + 5.0 * target.unsqueeze(1), target


@pytest.mark.parametrize(("samples", "dim"), [(200, 6), (10, 30)])
def test_the_covariance_is_that_of_scikit_learn(samples, dim):
    residuals = torch.randn(samples, dim, generator=torch.manual_seed(0)).double() * torch.arange(1, dim + 1)
    expected = OAS(assume_centered=True).fit(residuals.numpy()).covariance_
    assert shrunk_covariance(residuals).numpy() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def slow_scores(train, target, new):
    """Squared Mahalanobis distance to the nearest class, with the covariance of scikit-learn."""
    means = {c: train[target == c].mean(0) for c in set(target.tolist())}
    residuals = np.stack([x - means[c] for x, c in zip(train, target.tolist(), strict=True)])
    precision = np.linalg.inv(OAS(assume_centered=True).fit(residuals).covariance_)
    return np.array([min((x - m) @ precision @ (x - m) for m in means.values()) for x in new])


def test_p_values_are_the_ranks_of_distances_among_those_of_validation_samples():
    embeddings, target = draw(90)
    validation, new = draw(70, seed=2)[0], draw(40, seed=1)[0]
    new[20:] += 4 * torch.randn(20, 6, generator=torch.manual_seed(3))
    x = embeddings.double().numpy()
    own, scores = (slow_scores(x, target, values.double().numpy()) for values in (validation, new))
    expected = [(1 + (own >= s).sum()) / 71 for s in scores]
    found = OutlierDetector.fit(embeddings, target, validation).p_values(new)
    assert found.tolist() == pytest.approx(expected, abs=1.5 / 71)  # the checkpoint has single precision


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_few_new_samples_have_small_p_values_and_outliers_do(shift):
    """A share of at most α of samples like the validation samples has a p-value of at most α, whatever training is."""
    embeddings, target = draw(1000)
    detector = OutlierDetector.fit(embeddings, target, draw(1000, seed=2)[0] + shift)
    usual = draw(4000, seed=1)[0] + shift
    for level in (0.01, 0.05, 0.2):
        share = (detector.p_values(usual) <= level).double().mean().item()
        assert share == pytest.approx(level, abs=4 * np.sqrt(level / 1000 + level / 4000))
    assert detector.p_values(usual[:50] + 100).max().item() == pytest.approx(1 / 1001)


def test_wide_embeddings_are_projected_and_outliers_found():
    """Of 700 channels with three classes in a subspace, and of outliers in other directions than the classes."""
    random = torch.Generator().manual_seed(4)
    basis = torch.randn(6, 700, generator=random)

    def widen(values):
        return values @ basis + 0.5 * torch.randn(len(values), 700, generator=random)

    embeddings, target = draw(600)
    detector = OutlierDetector.fit(widen(embeddings), target, widen(draw(600, seed=5)[0]))
    assert detector.whitening.shape == (128, 700)
    assert detector.means.shape == (3, 128)
    usual = detector.p_values(widen(draw(2000, seed=1)[0]))  # shrinkage is strong, because most channels vary little
    assert (usual <= 0.05).double().mean().item() == pytest.approx(0.05, abs=4 * np.sqrt(0.05 / 600 + 0.05 / 2000))
    outliers = widen(draw(200, seed=2)[0]) + torch.randn(200, 700, generator=random)
    assert (detector.p_values(outliers) <= 0.05).double().mean().item() > 0.95


def test_missing_inputs_and_rare_ones_are_left_out():
    embeddings, target = draw(200)
    present = torch.arange(200) % 2 == 0
    blank = embeddings.where(present.unsqueeze(1), 0.0)
    names = {"text": blank, "image": embeddings, "sound": embeddings, "both": embeddings}
    masks = {"text": present, "image": torch.arange(200) < 49, "sound": present}
    complete = Embeddings(dict.fromkeys(names, embeddings), {}, target)
    broken = names | {"sound": embeddings.masked_fill(torch.arange(200).eq(2).unsqueeze(1), torch.nan)}
    some = Embeddings(broken, masks, target)
    found = fit_detectors(some, complete)
    assert set(found) == set(fit_detectors(complete, some)) == {"text", "both"}
    alone = OutlierDetector.fit(embeddings[present], target[present], embeddings)
    assert torch.equal(found["text"].scores, alone.scores)


def test_equal_embeddings_and_a_single_class_have_a_detector():
    detector = OutlierDetector.fit(torch.ones(60, 4), torch.zeros(60, dtype=torch.long), torch.ones(60, 4))
    assert detector.p_values(torch.ones(1, 4)).item() == 1
    assert detector.p_values(torch.ones(1, 4) + 0.1).item() == pytest.approx(1 / 61)


def test_the_fused_embedding_has_the_name_of_all_inputs():
    encoded = {name: Encoded(torch.zeros(2, 1, 3), torch.ones(2, 1).bool(), torch.zeros(2, 3)) for name in ("a", "b")}
    logits = torch.zeros(2, 2)
    assert set(embeddings_of(encoded, Fused(logits, torch.zeros(2, 5)))) == {"a", "b", "a+b"}
    assert set(embeddings_of(encoded, Fused(logits))) == {"a", "b"}


DETECTORS = {
    name: OutlierDetector.fit(*draw(100, dim=dim), draw(80, seed=1, dim=dim)[0])
    for name, dim in (("text", 6), ("text+image", 4))
}
DIMS = {"text": 6, "image": 5}


def test_detectors_are_plain_data_and_back():
    read = read_detectors({"outlier_detectors": detectors_config(DETECTORS)}, DIMS)
    new, _ = draw(20, seed=5)
    assert torch.equal(read["text"].p_values(new), DETECTORS["text"].p_values(new))
    assert read_detectors({}, DIMS) == {}


@pytest.mark.parametrize(
    "damage",
    [
        {"whitening": torch.zeros(5, 5)},
        {"whitening": 3},
        {"means": torch.zeros(0, 6)},
        {"means": torch.full((3, 6), torch.nan)},
        {"scores": torch.zeros(0).double()},
        {"scores": torch.zeros(4)},
    ],
)
def test_damaged_detectors_are_refused(damage):
    content = detectors_config(DETECTORS)
    content["text"] |= damage
    with pytest.raises(UserError, match="its outlier detectors are damaged"):
        read_detectors({"outlier_detectors": content}, DIMS)


@pytest.mark.parametrize("content", [3, {"text": 3}, {"sound": detectors_config(DETECTORS)["text"]}, {"text": {}}])
def test_other_content_is_refused(content):
    with pytest.raises(UserError, match="its outlier detectors are damaged"):
        read_detectors({"outlier_detectors": content}, DIMS)
