"""An application without a model: tells which process answers, and ends a process on request."""

from __future__ import annotations

import asyncio
import os

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def process_id(request):
    await asyncio.sleep(0.02)
    return PlainTextResponse(str(os.getpid()))


def build_light_app():
    from fusion_pl.serve.supervisor import stop_with_parent

    stop_with_parent()
    return Starlette(routes=[Route("/", process_id)])


if __name__ == "__main__":
    import socket

    from fusion_pl.serve.supervisor import run_workers
    from tests.serve.light_app import build_light_app as build

    with socket.create_server(("127.0.0.1", 0)) as bound:
        print(bound.getsockname()[1], flush=True)
        raise SystemExit(run_workers(build, bound, 2))
