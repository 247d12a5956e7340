"""``POST /explain``: which inputs of one sample, and which parts of them, its prediction depends on."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fusion_pl.explain.explainer import Explainer
from fusion_pl.explain.explanation import PartEffects
from fusion_pl.explain.views import View, make_view
from fusion_pl.messages import did_you_mean, join_names
from fusion_pl.serve.memory import Reservation
from fusion_pl.serve.request_limit import RequestLimit
from fusion_pl.serve.requests import RequestError
from fusion_pl.serve.service import Service, failure
from fusion_pl.types import Sample

MAX_REQUESTS = 8  # accepted requests that are not answered yet; an explanation takes longer than a prediction
ReadSamples = Callable[[Request, Reservation], Awaitable[tuple[bool, list[Sample]]]]
MIN_SCALE = 0.1  # effect on the log-odds with the strongest colour, at least; rounding errors have none
NICENESS = 10  # of the thread of explanations: predictions get the processor first


class Question(NamedTuple):
    """What a client asks about a sample.

    Attributes:
        target: name of the class to explain; None = the predicted one.
        evidence: whether to compute the effects of the parts of each input.
    """

    target: str | None
    evidence: bool


class Explanations:
    """Explain samples one after the other in one thread, beside the thread of the predictions.

    Args:
        service: the model.
        read_samples: function that reads the samples of a request, and returns whether they are a list.
    """

    def __init__(self, service: Service, read_samples: ReadSamples) -> None:
        self.service = service
        self.read_samples = read_samples
        self._limit = RequestLimit(MAX_REQUESTS)
        self._thread = ThreadPoolExecutor(1, "explanations", _lower_priority)

    async def answer(self, request: Request, reservation: Reservation) -> Response:
        """Answer ``POST /explain``.

        Args:
            request: the request.
            reservation: memory of its opened values.

        Raises:
            RequestError: if the request is malformed, or too many requests are accepted already.
        """
        question = read_question(request, self.service.predictor.classes)
        with self._limit.accept():
            is_list, samples = await self.read_samples(request, reservation)
            if is_list:
                raise RequestError(422, 'this path takes one sample: send its inputs without "samples"')
            loop = asyncio.get_running_loop()
            content = await loop.run_in_executor(self._thread, self.explain, samples[0], question)
        return JSONResponse(content)

    def explain(self, sample: Sample, question: Question) -> dict[str, Any]:
        """Return the explanation of a sample as plain data, or an error."""
        explainer = Explainer(self.service.predictor, question.target)
        try:
            explanation = explainer.explain_sample(sample, with_parts=question.evidence)
        except Exception as error:  # the boundary between the samples of different clients, as for predictions
            return {"id": sample.id, "error": failure(error)}
        content = {"error": None} | explanation.as_dict()
        if question.evidence and explanation.error is None:
            content["views"] = {
                name: asdict(_view(sample.inputs[name], effect.parts)) for name, effect in explanation.inputs.items()
            }
        elif explanation.error is None:
            for effect in content["inputs"].values():
                del effect["parts"]
        return content

    def close(self) -> None:
        """End the thread after its current explanation."""
        self._thread.shutdown()


def _view(value: Any, parts: PartEffects) -> View:
    """Return a value with its effects in colour, the strongest one in the strongest colour unless it is negligible."""
    return make_view(value, parts, max([MIN_SCALE, *map(abs, parts.spans.values())]))


def read_question(request: Request, classes: list[str]) -> Question:
    """Return the parameters of a request's URL.

    Raises:
        RequestError: if one of them is unknown, repeated or wrong.
    """
    parameters = request.query_params
    for name in parameters:
        if name not in Question._fields:
            raise RequestError(422, f"there is no parameter {name!r}: expected {join_names(Question._fields)}")
        if len(parameters.getlist(name)) > 1:
            raise RequestError(422, f"the parameter {name!r} is given twice")
    target, evidence = parameters.get("target"), parameters.get("evidence", "false")
    if target is not None and target not in classes:
        hint = did_you_mean(target, classes)
        raise RequestError(422, f"target: {target!r} is not one of the classes {join_names(classes)}{hint}")
    if evidence not in ("true", "false"):
        raise RequestError(422, f"evidence is {evidence!r}, expected true or false")
    return Question(target, evidence == "true")


def _lower_priority() -> None:
    """Let the predictions run first; systems other than Linux have no priorities of single threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
