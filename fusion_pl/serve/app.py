"""The web application: its routes, and how a request for predictions is answered."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fusion_pl.messages import is_failure
from fusion_pl.serve.batching import Batcher, BatchFailedError
from fusion_pl.serve.explain import Explanations
from fusion_pl.serve.hosts import HostCheck
from fusion_pl.serve.memory import OpenedMemory, Reservation
from fusion_pl.serve.openapi import openapi_document
from fusion_pl.serve.pages import page_routes
from fusion_pl.serve.request_limit import RequestLimit
from fusion_pl.serve.requests import JSON, MULTIPART, RequestError, media_type, parse_json, parse_multipart, read_body
from fusion_pl.serve.service import Service, log_error
from fusion_pl.serve.values import decode_values, open_decoded
from fusion_pl.types import Sample

DECODING_THREADS = 4
MESSAGES = {  # of answers that the router gives
    404: "there is nothing at this path: POST /predict, or GET /openapi.json, which describes all paths",
    405: "this path has another method: POST /predict and /explain, GET for all others",
}
OPTIONS = {"/": "--page", "/drift": "--reference"}  # path -> option of the server that adds it
PAGE_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(service: Service) -> Starlette:
    """Return the application that serves one model."""
    server = Server(service)
    routes = [
        Route("/predict", server.protect(server.count(server.predict)), methods=["POST"]),
        Route("/explain", server.protect(server.count(server.explain)), methods=["POST"]),
        Route("/health", server.health),
        Route("/ready", server.ready),
        Route("/info", server.protect(server.info)),
        Route("/metrics", server.protect(server.metrics)),
        Route("/openapi.json", server.protect(server.openapi)),
    ]
    if service.drift is not None:
        routes.append(Route("/drift", server.protect(server.drift)))
    if service.options.page:
        routes += [*page_routes(), Route("/examples", server.protect(server.examples))]
    hosts = service.options.allowed_hosts
    middleware = [] if hosts is None else [Middleware(HostCheck, hosts)]
    handlers: Any = {HTTPException: answer_error}
    app = Starlette(routes=routes, middleware=middleware, lifespan=server.lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False  # /info/ is no path, as the other ones that do not exist
    return app


async def answer_error(request: Request, error: Exception) -> Response:
    """Return the answer to a request that is refused."""
    assert isinstance(error, HTTPException)
    message = MESSAGES.get(error.status_code, error.detail)
    if error.status_code == 404 and request.url.path in OPTIONS:
        message = f"this server was started without {OPTIONS[request.url.path]}, which adds this path; {message}"
    return JSONResponse({"error": message}, error.status_code, error.headers)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn errors into answers: the boundary of the server."""
    try:
        yield
    except HTTPException:
        raise
    except BaseException as error:  # the client learns nothing about the reason
        if not is_failure(error):
            raise
        reason = error.__cause__ if isinstance(error, BatchFailedError) else None
        log_error("A request could not be answered", reason or error)
        raise RequestError(500, "the server failed; its log has the reason") from error


class Server:
    """Endpoints of a server, and the threads that open and predict samples.

    Attributes:
        predicting: task that predicts batches, between the start of the server and its stop.
    """

    def __init__(self, service: Service) -> None:
        options = service.options
        self.service = service
        self.batcher = Batcher(service.predict, options.batch_size, options.max_wait)
        self.limit = RequestLimit(options.queue)
        opened_bytes = int(service.limits.opened_megabytes * 1e6)
        # Two, because predictions do not wait for explanations, which are slow.
        self.memory, self.explained_memory = OpenedMemory(opened_bytes, DECODING_THREADS), OpenedMemory(opened_bytes, 1)
        self.explanations = Explanations(service, self._read_samples)
        self.openapi_body = json.dumps(openapi_document(service), ensure_ascii=False).encode()
        self.examples_body = json.dumps({"examples": service.examples}, ensure_ascii=False).encode()
        self.predicting: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run the batches between the start of the server and its stop."""
        del app
        self.predicting = asyncio.create_task(self.batcher.run())
        yield
        self.predicting.cancel()  # all accepted requests are answered, or abandoned
        self.predicting = None
        self.memory.close()
        self.explained_memory.close()
        self.batcher.close()
        self.explanations.close()

    def protect(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint that answers only requests with the token, if there is one."""
        token = self.service.options.token
        if token is None:
            return endpoint
        expected = f"Bearer {token}".encode()

        async def answer(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode("latin-1", "replace")
            if not hmac.compare_digest(given, expected):
                raise RequestError(
                    401,
                    "the token is missing or wrong: send the header Authorization: Bearer TOKEN",
                    {"WWW-Authenticate": "Bearer"},
                )
            return await endpoint(request)

        return answer

    def count(self, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint whose answers and errors are counted."""
        metrics = self.service.metrics

        async def answer(request: Request) -> Response:
            start, status, path = time.perf_counter(), 500, request.scope["path"]
            try:
                with refusals():
                    response = await endpoint(request)
                status = response.status_code
            except HTTPException as error:
                status = error.status_code
                raise
            finally:
                metrics.requests.labels(path, status).inc()
                metrics.request_seconds.labels(path).observe(time.perf_counter() - start)
            return response

        return answer

    async def predict(self, request: Request) -> Response:
        """Answer ``POST /predict``."""
        with (
            self.limit.accept(),
            self.service.metrics.accepted.track_inprogress(),
            self.memory.reservation() as reservation,
        ):
            return await self._predict(request, reservation)

    async def _predict(self, request: Request, reservation: Reservation) -> Response:
        service = self.service
        with self.batcher.opening():
            is_list, samples = await self._read_samples(request, reservation)
        predictions = [service.as_dict(prediction) for prediction in await self.batcher.predict(samples)]
        failed = sum(prediction["error"] is not None for prediction in predictions)
        service.metrics.samples.labels("error").inc(failed)
        service.metrics.samples.labels("predicted").inc(len(samples) - failed)
        content: Any = {"predictions": predictions} if is_list else predictions[0]
        return JSONResponse(content)

    async def _read_samples(self, request: Request, reservation: Reservation) -> tuple[bool, list[Sample]]:
        """Return whether the client sent a list, and the opened samples."""
        loop = asyncio.get_running_loop()
        kind = media_type(request)
        body = await read_body(request, self.service.limits)
        content_type = request.headers["content-type"] if kind == MULTIPART else None
        return await loop.run_in_executor(reservation.memory.threads, self._open, body, content_type, reservation)

    def _open(self, body: bytes, content_type: str | None, reservation: Reservation) -> tuple[bool, list[Sample]]:
        """Return whether the client sent a list, and the opened samples.

        Args:
            body: the body of a request.
            content_type: header of a multipart body; None for JSON.
            reservation: memory of the request, which this thread may have to wait for.
        """
        predictor, limits = self.service.predictor, self.service.limits
        if content_type is None:
            parsed = parse_json(body, limits)
        else:
            parsed = parse_multipart(content_type, body, predictor.processors, limits)
        decoded = [decode_values(predictor.processors, values, limits) for values in parsed.values]
        reservation.reserve(sum(one.size for one in decoded))
        return parsed.is_list, [open_decoded(predictor, str(index), one) for index, one in enumerate(decoded)]

    async def explain(self, request: Request) -> Response:
        """Answer ``POST /explain``."""
        with self.explained_memory.reservation() as reservation:
            return await self.explanations.answer(request, reservation)

    async def examples(self, request: Request) -> Response:
        """Answer ``GET /examples``: samples to click on the page."""
        del request
        return Response(self.examples_body, media_type=JSON)

    async def health(self, request: Request) -> Response:
        """Answer ``GET /health``: the process answers."""
        del request
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Answer ``GET /ready``: predictions can be requested."""
        del request
        is_ready = self.predicting is not None and not self.predicting.done()
        return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)

    async def info(self, request: Request) -> Response:
        """Answer ``GET /info``: what the model takes and returns."""
        del request
        return JSONResponse(self.service.info)

    async def metrics(self, request: Request) -> Response:
        """Answer ``GET /metrics`` in the format of Prometheus."""
        del request
        drift = self.service.drift.text() if self.service.drift is not None else b""
        return Response(self.service.metrics.text() + drift, media_type=self.service.metrics.content_type)

    async def drift(self, request: Request) -> Response:
        """Answer ``GET /drift``: a page with the latest samples beside the validation samples."""
        del request
        assert self.service.drift is not None
        page = self.service.drift.page(self.service.info["checkpoint"]["file"])
        return Response(page, media_type="text/html", headers=PAGE_HEADERS)

    async def openapi(self, request: Request) -> Response:
        """Answer ``GET /openapi.json``: the description of these routes."""
        del request
        return Response(self.openapi_body, media_type=JSON)
