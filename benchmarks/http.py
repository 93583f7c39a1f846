"""The reward service's HTTP front, and the gain from batching across clients.

    python -m benchmarks.http [--requests 3000] [--rounds 5] [--callers 64]

[front] CPU seconds of the server process per ``POST /v1/score`` with the forward pass stubbed, against
a plain FastAPI + pydantic endpoint with the same schema and all scoring stubbed. Ours still includes
decoding, the queue, objective and estimator. Both under uvicorn with uvloop and httptools,
16 connections on loopback, rounds interleaved.

[batching] Thoughts scored per second of wall-clock by 64 concurrent clients against one client, with the
demo's base model, one compute thread, real tokens, rounds interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil

FRONT_CONNECTIONS = 16
GROUP = 2
ITEM = {
    "id": "bench-1",
    "context_ids": list(range(100, 164)),
    "target_ids": [7],
    "thoughts": [list(range(200, 216)), list(range(300, 316))],
}
BODY = json.dumps({"objective": "rlp", "items": [ITEM]}).encode()
CONTEXT_TOKENS, THOUGHT_TOKENS = 11, 7  # those of the demo: a document up to its answer, six states
SMALL_ITEM = {
    "context_ids": list(range(10, 10 + CONTEXT_TOKENS)),
    "target_ids": [7],
    "thoughts": [[first] * THOUGHT_TOKENS for first in range(10, 10 + GROUP)],
}
SMALL_BODY = json.dumps({"objective": "rlp", "items": [SMALL_ITEM]}).encode()


# The servers, each in a separate process.


def serve_role(role: str) -> None:
    """Serve until the process is stopped; the first line of stdout is the port."""
    import uvloop

    app = {"ours": our_app, "peer": peer_app, "model": model_app}[role]()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_app(app))


async def serve_app(app: Any) -> None:
    from forethought.telemetry.ops import EmbeddedHttpServer

    server = EmbeddedHttpServer(app, "127.0.0.1", 0, protocol_of(app))
    await server.start()
    print(server.port, flush=True)
    await asyncio.Event().wait()


def protocol_of(app: Any) -> Any:
    """Our front uses its own protocol class, as the service does; the peer uses uvicorn's."""
    from services.reward.http.fast_path import RewardProtocol
    from services.reward.http.server import RewardApp

    return RewardProtocol if isinstance(app, RewardApp) else None


def our_app() -> Any:
    """The whole front over a scorer whose forward pass is a constant."""
    from types import SimpleNamespace

    from services.reward.groups import GroupLikelihoods
    from services.reward.scoring import Scorer

    class Tokenizer:
        unk_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [39 if text == "<think>" else 40]}

        def get_vocab(self) -> dict[str, int]:
            return {"<think>": 39, "</think>": 40}

        def decode(self, token_ids: Any) -> str:
            raise AssertionError("no objective here reads texts")

    class Constant(Scorer):
        async def run(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)  # the thread exists only for the forward pass

        def score_groups(self, queries: Any) -> Any:
            return [
                GroupLikelihoods((-0.1,) * len(query.thoughts_G), -1.0, 1, 1, 1)
                for query in queries
            ]

    language_model = SimpleNamespace(tokenizer=Tokenizer())
    served: Any = SimpleNamespace(now=SimpleNamespace(language_model=language_model))
    return app_over(Constant(served, None, 16_384))


def model_app() -> Any:
    """The same front over the demo's base model."""
    import torch

    from forethought.compute.served_model import ServedModel
    from forethought.lab.demo.arms import base_model
    from forethought.types import WeightManifest
    from services.reward.scoring import Scorer

    torch.set_num_threads(1)
    served = ServedModel("policy", "cpu")
    served.load(base_model(), WeightManifest("policy", 0, 0, "", "", "float32", 0))
    return app_over(Scorer(served, None, 16_384))


def app_over(scorer: Any) -> Any:
    from forethought import objectives
    from forethought.auth import Guard
    from services.reward.http.server import RewardApp
    from services.reward.limits import Limits
    from services.reward.service import RewardService

    service = RewardService(
        scorer,
        {"rlp": objectives.load("rlp")},
        think_open="<think>",
        think_close="</think>",
        limits=Limits(max_batch_tokens=16_384),
    )
    return RewardApp(service, 8 << 20, Guard(is_open=True))


def peer_app() -> Any:
    """The straightforward implementation: typed models in and out, with scoring stubbed."""
    from fastapi import FastAPI

    from benchmarks.http_peer import ScoreReply, ScoreRequest, score

    app = FastAPI()
    app.post("/v1/score", response_model=ScoreReply)(score)
    assert ScoreRequest.model_validate_json(BODY).items[0].id == ITEM["id"]
    return app


@contextmanager
def server(role: str) -> Iterator[tuple[int, psutil.Process]]:
    """A running server's port and process."""
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.http", "--serve", role],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        assert child.stdout is not None
        yield int(child.stdout.readline()), psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait()


# The load.


def send(port: int, body: bytes, num_requests: int, num_connections: int) -> None:
    """Send ``num_requests`` requests over keep-alive connections, one at a time on each.

    Plain sockets: a client in asyncio costs more CPU than the servers and would set their pace.
    """
    head = f"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    request = head.encode() + b"content-type: application/json\r\n\r\n" + body
    to_send, to_receive = num_requests, num_requests
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(num_connections):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(connection, selectors.EVENT_READ)
            connection.sendall(request)
            to_send -= 1
        while to_receive:
            for key, _ in selector.select():
                check_answer(key.fileobj)
                to_receive -= 1
                if to_send:
                    key.fileobj.sendall(request)
                    to_send -= 1


def check_answer(connection: Any) -> None:
    """Read one response and check that it is a 200 with scores."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65_536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65_536)
    assert head.startswith(b"HTTP/1.1 200"), head
    assert b"rewards" in body, body


def cpu_us(port: int, process: psutil.Process, num_requests: int) -> float:
    """CPU microseconds of the server per request."""
    before = process.cpu_times()
    send(port, BODY, num_requests, FRONT_CONNECTIONS)
    after = process.cpu_times()
    used_s = after.user + after.system - before.user - before.system
    return 1e6 * used_s / num_requests


def thoughts_per_s(port: int, num_requests: int, num_callers: int) -> float:
    started_s = time.perf_counter()
    send(port, SMALL_BODY, num_requests, num_callers)
    return GROUP * num_requests / (time.perf_counter() - started_s)


def measure_front(num_requests: int, num_rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        ours, peer = (stack.enter_context(server(role)) for role in ("ours", "peer"))
        for warm in (ours, peer):
            cpu_us(*warm, num_requests // 4)
        rounds = [
            (cpu_us(*ours, num_requests), cpu_us(*peer, num_requests)) for _ in range(num_rounds)
        ]
    ratio = statistics.median(peer_us / our_us for our_us, peer_us in rounds)
    return case(ratio, rounds, "CPU us per request")


def measure_batching(num_callers: int, num_rounds: int) -> dict[str, Any]:
    with server("model") as (port, _):
        thoughts_per_s(port, num_callers, num_callers)
        rounds = [
            (thoughts_per_s(port, 8 * num_callers, num_callers), thoughts_per_s(port, 40, 1))
            for _ in range(num_rounds)
        ]
    return case(statistics.median(many / one for many, one in rounds), rounds, "thoughts/s")


def case(value: float, rounds: list[tuple[float, float]], unit: str) -> dict[str, Any]:
    """The median of the rounds' ratios, with the medians of both sides."""
    ours, peer = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {"value": round(value, 2), "ours": round(ours, 1), "peer": round(peer, 1), "unit": unit}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--serve", choices=("ours", "peer", "model"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve_role(given.serve)
        return
    settings = {
        "requests": given.requests,
        "rounds": given.rounds,
        "callers": given.callers,
        "context_tokens": CONTEXT_TOKENS,
        "thought_tokens": THOUGHT_TOKENS,
        "thoughts": GROUP,
    }
    cases = {"front": measure_front(given.requests, given.rounds)}
    print(
        f"front: ours {cases['front']['ours']} us, FastAPI + pydantic {cases['front']['peer']} us"
    )
    cases["batching"] = measure_batching(given.callers, given.rounds)
    print(f"batching: {cases['batching']['ours']} against {cases['batching']['peer']} thoughts/s")
    print(json.dumps({"benchmark": "http", "settings": settings, "cases": cases}))


if __name__ == "__main__":
    main()
