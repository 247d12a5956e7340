"""Choose the rows that are most worth labelling: active learning from a pool of rows."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fusion_pl.predict import Predictor
from fusion_pl.types import Batch, Prediction, UserError

Method = Literal["margin", "bald", "coreset"]
NUM_DRAWS = 10  # of dropout
CHUNK_ROWS = 4096  # whose distances are computed at once


class Selector:
    r"""Choose the rows of a pool that a person should label next.

    ``margin``: the smallest difference of the two largest probabilities; with several labels per row, of the
    probabilities of having and not having the label that is nearest to 0.5.

    ``bald``: the largest mutual information of label and weights, :math:`H(\bar p) - \frac{1}{T} \sum_t H(p_t)`, with
    the probabilities :math:`p_t` of T = 10 draws of dropout. Source: "Deep Bayesian Active Learning with Image Data",
    arXiv:1703.02910. Deviation: rows are chosen independently of each other.

    ``coreset``: k-centre greedy: each row is the one that is farthest from its nearest centre, by fused embedding; the
    centres are the labelled rows and the rows that are chosen already. Without labelled rows, the first centre is the
    row that is nearest to the mean. Source: "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
    arXiv:1708.00489. Deviation: the greedy solution only, without the mixed integer program.

    Args:
        predictor: the model.
        method: how rows are chosen.
        is_labelled: whether each row has a label already, so that it is not chosen; None = no row has.

    Raises:
        UserError: if the model has no dropout for ``bald``, or no fused embedding for ``coreset``.
    """

    def __init__(self, predictor: Predictor, method: Method, is_labelled: NDArray[np.bool_] | None) -> None:
        self.predictor, self.method, self.is_labelled = predictor, method, is_labelled
        if method == "bald" and not _dropouts(predictor.model):
            raise UserError(
                "--by bald needs dropout, which the model does not have: train with dropout, or give --by margin"
            )
        if method == "coreset" and predictor.empty_output.embedding is None:
            name = type(predictor.model.fusion).__name__
            raise UserError(
                f"--by coreset needs fused embeddings, which {name} does not have: give --by margin or bald"
            )

    def select(self, batches: Iterable[Batch], number: int) -> list[int]:
        """Return the indices of at most ``number`` rows, the one that is most worth labelling first.

        Args:
            batches: all rows in order.
            number: number of rows, 1 or more.
        """
        if self.method == "coreset":
            return self._select_centres(batches, number)
        best = heapq.nlargest(number, self._score_rows(batches))
        return [-negative_row for _, negative_row in best]

    def _score_rows(self, batches: Iterable[Batch]) -> Iterator[tuple[float, int]]:
        """Yield score and negative index of each row that can be chosen, so that of equal scores the first row wins."""
        row = 0
        for batch in batches:
            predictions = list(self.predictor.predict_batches([batch]))
            scores = self._bald(batch) if self.method == "bald" else map(self._margin, predictions)
            for prediction, score in zip(predictions, scores, strict=True):
                if prediction.error is None and not self._has_label(row):
                    yield score, -row
                row += 1

    def _margin(self, prediction: Prediction) -> float:
        """Return the negative margin; 0 without a prediction."""
        values = list((prediction.probabilities or {}).values())
        if self.predictor.task.exclusive_classes:
            first, second = heapq.nlargest(2, [*values, 0.0, 0.0])
            return second - first
        return -min((abs(2 * value - 1) for value in values), default=0.0)

    def _bald(self, batch: Batch) -> list[float]:
        """Return the mutual information of each row of a batch."""
        with dropout(self.predictor.model):
            draws = torch.stack([self._probabilities(batch) for _ in range(NUM_DRAWS)])
        exclusive = self.predictor.task.exclusive_classes
        information = _entropy(draws.mean(0), exclusive) - _entropy(draws, exclusive).mean(0)
        found: list[float] = information.tolist()
        return found

    def _probabilities(self, batch: Batch) -> Float[Tensor, "B C"]:
        with torch.inference_mode():
            batch = batch.to(self.predictor.device)
            logits = self.predictor.model.calibrate(self.predictor.model(batch).logits, batch.present)
        return self.predictor.task.probabilities(logits).cpu()

    def _select_centres(self, batches: Iterable[Batch], number: int) -> list[int]:
        assert self.predictor.empty_output.embedding is not None
        size = self.predictor.empty_output.embedding.shape[1]
        with tempfile.TemporaryFile() as file:  # the embeddings of a million rows need not fit in memory
            rows = []
            for row, prediction in enumerate(self.predictor.predict_batches(batches, embeddings=True)):
                if prediction.embedding is not None:
                    rows.append(row)
                    file.write(np.asarray(prediction.embedding, np.float32).tobytes())
            if not rows:
                return []
            file.flush()
            embeddings = np.memmap(file, np.float32, "r", shape=(len(rows), size))
            labelled = np.array([self._has_label(row) for row in rows])
            return [rows[index] for index in k_centre_greedy(embeddings, labelled, number)]

    def _has_label(self, row: int) -> bool:
        return self.is_labelled is not None and bool(self.is_labelled[row])


def k_centre_greedy(embeddings: Float[np.ndarray, "N D"], is_centre: NDArray[np.bool_], number: int) -> list[int]:
    """Return the indices of points, each of which is the farthest one from its nearest centre.

    Args:
        embeddings: the points.
        is_centre: whether each point is a centre from the beginning.
        number: number of points, fewer if there are fewer.
    """
    chosen: list[int] = []
    if is_centre.any():
        nearest = _distances(embeddings, embeddings[is_centre])
    else:
        chosen.append(int(_distances(embeddings, embeddings.mean(0, keepdims=True)).argmin()))
        nearest = _distances(embeddings, embeddings[chosen])
    nearest[is_centre] = -np.inf
    nearest[chosen] = -np.inf
    while len(chosen) < number and nearest.max() >= 0:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(embeddings, embeddings[chosen[-1:]]))
        nearest[chosen[-1]] = -np.inf
    return chosen


def _distances(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the distance of each point to its nearest centre."""
    others = torch.from_numpy(np.array(centres))
    chunks = (torch.from_numpy(np.array(points[at : at + CHUNK_ROWS])) for at in range(0, len(points), CHUNK_ROWS))
    parts = torch.split(others, CHUNK_ROWS)  # the labelled rows may be many, too
    nearest = [torch.stack([torch.cdist(chunk, part).amin(1) for part in parts]).amin(0) for chunk in chunks]
    return torch.cat(nearest).numpy()


def _dropouts(model: nn.Module) -> list[_DropoutNd]:
    """Return the layers that draw in training, which those of frozen encoders do not, of a model in evaluation."""
    model.train()
    active = [
        module for module in model.modules() if isinstance(module, _DropoutNd) and module.p > 0 and module.training
    ]
    model.eval()
    return active


@contextmanager
def dropout(model: nn.Module) -> Iterator[None]:
    """Draw dropout as in training, with a fixed seed; other layers stay as in prediction."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            for module in _dropouts(model):
                module.train()
            yield
        finally:
            model.eval()


def _entropy(probabilities: Float[Tensor, "*_ C"], exclusive: bool) -> Float[Tensor, " *_"]:
    """Return the entropy of a class, or the sum of the entropies of labels."""
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    if not exclusive:
        entropy = entropy + torch.special.entr(1 - probabilities).sum(-1)
    return entropy
