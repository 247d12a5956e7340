"""Scores of doubt, by which a model abstains from the samples it would often get wrong."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from fusion_pl.uncertainty.conformal import check_share

Doubt = Literal["probability", "entropy", "energy", "evidential"]


def doubt_scores(
    logits: Float[Tensor, "N C"], probabilities: Float[Tensor, "N C"], evidential: bool, exclusive_classes: bool = True
) -> dict[str, Tensor]:
    r"""Return the scores of doubt by name, each of shape (N,); a higher score means more doubt.

    ``probability``: :math:`1 - \max_c p_c`. ``entropy``: :math:`-\sum_c p_c \log p_c`. ``energy``:
    :math:`-\log \sum_c \exp z_c`. ``evidential``: the uncertainty :math:`C / \sum_c \alpha_c` of the head
    ``Evidential``, whose logits are :math:`\log \alpha`; it ranks samples as the energy does.

    If a sample may have several labels, which count as independent: :math:`1 - \prod_c \max(p_c, 1 - p_c)`, the
    probability that another set of labels than the most probable one is right; the sum of the entropies of all labels;
    and :math:`-\sum_c \log(1 + \exp z_c)`.

    Source: "Energy-based Out-of-distribution Detection", arXiv:2010.03759; "Trusted Multi-View Classification",
    arXiv:2102.02051; of several labels: "Can multi-label classification networks know what they don't know?",
    arXiv:2109.14162.

    Args:
        logits: logits without calibration.
        probabilities: calibrated probabilities.
        evidential: whether the head is ``Evidential``.
        exclusive_classes: whether every sample has exactly one class.
    """
    if not exclusive_classes:
        p = probabilities.double()
        return {
            "probability": 1 - torch.maximum(p, 1 - p).prod(-1),
            "entropy": (torch.special.entr(p) + torch.special.entr(1 - p)).sum(-1),
            "energy": -softplus(logits.double()).sum(-1),
        }
    energy = -logits.double().logsumexp(-1)
    scores = {
        "probability": 1 - probabilities.double().max(-1).values,
        "entropy": torch.special.entr(probabilities.double()).sum(-1),
        "energy": energy,
    }
    return scores | ({"evidential": logits.shape[-1] * energy.exp()} if evidential else {})


def abstention_threshold(doubts: Float[Tensor, " N"], share: float) -> float:
    """Return the largest doubt of the given share of validation samples, those with the least doubt.

    Raises:
        UserError: if the share is not above 0 and below 1.
    """
    check_share("abstain", share)
    return float(doubts.sort().values[max(1, math.ceil(round(share * len(doubts), 9))) - 1])


def risk_coverage(doubts: Float[Tensor, " N"], wrong: Bool[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the share of wrong predictions among the k samples with the least doubt, for k = 1 … N.

    Samples with equal doubt count with their common share of wrong predictions.
    """
    distinct, index, counts = torch.unique(doubts, return_inverse=True, return_counts=True)
    shares = torch.zeros(len(distinct), dtype=torch.float64).index_add_(0, index, wrong.double()) / counts
    return torch.div(shares[index.sort().values].cumsum(0), torch.arange(1, len(doubts) + 1))


def area_under_risk_coverage(doubts: Float[Tensor, " N"], wrong: Bool[Tensor, " N"]) -> float:
    """Return the mean of ``risk_coverage``, AURC; NaN without samples.

    Source: "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers", arXiv:1805.08206.
    """
    return float(risk_coverage(doubts, wrong).mean())
