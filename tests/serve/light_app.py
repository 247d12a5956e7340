"""An application without a model: tells which process answers, and ends a process on request."""

from __future__ import annotations

import asyncio
import os

from prometheus_client import Gauge
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from fusion_pl.serve.metrics import Metrics


async def process_id(request):
    await asyncio.sleep(0.02)
    return PlainTextResponse(str(os.getpid()))


def build_light_app():
    from fusion_pl.serve.supervisor import stop_with_parent

    stop_with_parent()
    metrics = Metrics(1)
    Gauge("workers", "One per worker.", registry=metrics.registry, multiprocess_mode="livesum").set(1)

    async def text(request):
        return Response(metrics.text())

    return Starlette(routes=[Route("/", process_id), Route("/metrics", text)])


if __name__ == "__main__":
    import socket
    import tempfile

    from fusion_pl.serve import supervisor
    from fusion_pl.serve.metrics import SHARED_FOLDER
    from tests.serve.light_app import build_light_app as build

    with socket.create_server(("127.0.0.1", 0)) as bound, tempfile.TemporaryDirectory() as folder:
        os.environ[SHARED_FOLDER] = folder
        print(bound.getsockname()[1], flush=True)
        supervisor.SECONDS_TO_ANSWER = 3600
        raise SystemExit(supervisor.run_workers(build, bound, 2))
