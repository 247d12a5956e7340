"""Compare the libraries that ``fusion-pl serve`` could use: the same model and requests, in turns (docs/serving.md).

pip install litserve fastapi
python -m benchmarks.serve_candidates
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import litserve
import torch

from benchmarks.measure import print_table
from benchmarks.serve import Bare, make_request, make_sample, send_load, start_server, write_checkpoint
from fusion_pl.data.collate import Collate
from fusion_pl.predict import Predictor
from fusion_pl.serve.limits import Limits
from fusion_pl.serve.values import decode_values, open_decoded

BATCH, WAIT = 32, 0.005


class Api(litserve.LitAPI):
    """The model in LitServe: one process of uvicorn, one of the model."""

    def setup(self, device):
        self.predictor = Predictor.from_checkpoint(os.environ["CHECKPOINT"], "cpu")
        self.collate = Collate(self.predictor.processors)

    def decode_request(self, request):
        return open_decoded(self.predictor, "0", decode_values(self.predictor.processors, request, Limits()))

    def batch(self, inputs):
        return self.collate(inputs)

    def predict(self, batch):
        return list(self.predictor.predict_batches([batch]))

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return asdict(output)


def serve_litserve(checkpoint: str, port: int) -> None:
    """Serve with LitServe."""
    os.environ["CHECKPOINT"] = checkpoint
    from benchmarks.serve_candidates import Api  # which another process can import

    api = Api(max_batch_size=BATCH, batch_timeout=WAIT)
    litserve.LitServer(api, accelerator="cpu").run(port=port, generate_client_file=False, log_level="error")


def serve_fastapi(checkpoint: str, port: int) -> None:
    """Serve with FastAPI, which validates the request, and our batches."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import create_model

    from fusion_pl.serve.app import Server
    from fusion_pl.serve.service import ServeOptions, Service

    service = Service(ServeOptions(checkpoint, "cpu", queue=1000))
    server = Server(service)
    app = FastAPI(lifespan=server.lifespan)
    sample_model = create_model("Sample", **dict.fromkeys(service.predictor.processors, (str | None, None)))

    async def predict(sample):
        with server.limit.accept():
            decoded = decode_values(service.predictor.processors, sample.model_dump(), service.limits)
            opened = open_decoded(service.predictor, "0", decoded)
            (prediction,) = await server.batcher.predict([opened])
        return service.as_dict(prediction)

    predict.__annotations__["sample"] = sample_model  # a class, not the text of an annotation
    app.post("/predict")(predict)
    app.get("/health")(lambda: {})
    uvicorn.run(app, port=port, http="h11", access_log=False, log_level="error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--serve", nargs=3, help="internal: library, checkpoint and port of a server")
    arguments = parser.parse_args()
    if arguments.serve:
        library, path, port = arguments.serve
        {"LitServe": serve_litserve, "FastAPI": serve_fastapi}[library](path, int(port))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        checkpoint, sample = Path(folder, "best.ckpt"), make_sample()
        write_checkpoint(checkpoint, arguments.dim)
        bare, request = Bare(checkpoint, sample), make_request(sample)
        commands = {
            "Starlette": ["-m", "fusion_pl", "serve", "--ckpt_path", str(checkpoint), "--port", "8771"],
            "FastAPI": ["-m", "benchmarks.serve_candidates", "--serve", "FastAPI", str(checkpoint), "8772"],
            "LitServe": ["-m", "benchmarks.serve_candidates", "--serve", "LitServe", str(checkpoint), "8773"],
        }
        ports = {name: int(command[-1]) for name, command in commands.items()}
        pids = {name: servers.enter_context(start_server(commands[name], ports[name], 1)) for name in commands}
        figures = {name: [] for name in ("bare", *commands)}
        for _ in range(arguments.rounds):
            alone, _ = bare.seconds(1, arguments.count, decode=False)
            _, cpu = bare.seconds(BATCH, arguments.count // 16, decode=False)
            figures["bare"].append((1000 * statistics.median(alone), BATCH * (arguments.count // 16) / cpu, 0, 0))
            for name, port in ports.items():
                one = send_load(port, pids[name], request, 1, arguments.count)
                assert set(one.statuses) == {200}, (name, one.statuses)
                many = send_load(port, pids[name], request, 32, arguments.count // 16)
                answered = many.statuses[200]
                print(name, one.p50, many.statuses, many.seconds, many.cpu, flush=True)
                figures[name].append((one.p50, answered / max(many.cpu, 0.01), answered / many.seconds, many.p99))
    header = ["server", "p50 of one client, ms", "samples/CPU s, 32 clients", "samples/s", "p99 of 32 clients, ms"]
    rows = [
        [
            name,
            *(
                f"{statistics.median(column):.4g} ({min(column):.4g} to {max(column):.4g})"
                for column in zip(*rounds, strict=True)
            ),
        ]
        for name, rounds in figures.items()
    ]
    print_table("libraries for a server", header, rows)


if __name__ == "__main__":
    sys.exit(main())
