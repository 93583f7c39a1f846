"""Reward and rollout services on real loopback ports, with tiny models, and reference results for them.

The reference is a plain transformers forward pass over one sequence at a time, without cache, padding
or batching.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from forethought import objectives
from forethought.auth import Guard
from forethought.compute.served_model import ServedModel
from forethought.rpc.guard import GrpcGuard
from forethought.rpc.server import Servicer, start_grpc_server
from forethought.telemetry.ops import EmbeddedHttpServer
from services.reward.grpc_server import RewardServicer
from services.reward.http.fast_path import RewardProtocol
from services.reward.http.server import RewardApp
from services.reward.limits import Limits
from services.reward.scoring import Scorer
from services.reward.service import RewardService
from tests.tiny import CLOSE_ID, OPEN_ID, THINK_CLOSE, THINK_OPEN, build_tokenizer

OPEN = Guard(is_open=True)


@dataclass(frozen=True)
class RewardEndpoints:
    """A running reward service and the URLs of its endpoints."""

    service: RewardService
    urls: dict[str, str]


@asynccontextmanager
async def reward_endpoints(
    policy: ServedModel,
    baseline: ServedModel,
    limits: Limits | None = None,
    guard: Guard | None = None,
) -> AsyncIterator[RewardEndpoints]:
    """Serve a reward service over real HTTP and gRPC; open without a guard."""
    scorer = Scorer(policy, baseline, max_batch_tokens=4096)
    service = RewardService(
        scorer,
        {"rlp": objectives.load("rlp")},
        think_open=THINK_OPEN,
        think_close=THINK_CLOSE,
        limits=limits or Limits(max_batch_tokens=4096),
    )
    async with (
        http_endpoint(RewardApp(service, 1 << 20, guard or OPEN)) as http_url,
        grpc_endpoint(RewardServicer(service), guard) as address,
    ):
        yield RewardEndpoints(service, {"http": http_url, "grpc": f"grpc://{address}"})
    await service.close()
    await scorer.close()


@asynccontextmanager
async def http_endpoint(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application on a free port; a RewardApp over its own protocol, as in production."""
    protocol = RewardProtocol if isinstance(app, RewardApp) else None
    server = EmbeddedHttpServer(app, "127.0.0.1", 0, protocol)
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.stop()


@asynccontextmanager
async def grpc_endpoint(servicer: Servicer, guard: Guard | None = None) -> AsyncIterator[str]:
    """Serve a servicer on a free port, yielding ``host:port``; open without a guard."""
    interceptors = [GrpcGuard(guard)] if guard else []
    server = await start_grpc_server([servicer], "127.0.0.1", 0, interceptors=interceptors)
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.stop()


def ids_of(text: str) -> tuple[int, ...]:
    """A text's token ids."""
    return tuple(build_tokenizer()(text, add_special_tokens=False)["input_ids"])


@cache
def plain_model(directory: Path) -> Any:
    """The model of a directory, loaded by transformers."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@torch.no_grad()
def plain_logits(directory: Path, token_ids: Sequence[int]) -> torch.Tensor:
    """The logits of one sequence. Shape [N, V]."""
    logits: torch.Tensor = plain_model(directory)(torch.tensor([list(token_ids)])).logits[0]
    return logits.double()


def plain_logprobs(
    directory: Path,
    prefix_ids: Sequence[int],
    continuation_ids: Sequence[int],
    *,
    removed_id: int | None = None,
    temperature: float = 1.0,
) -> list[float]:
    """The log-probs of a continuation's tokens. Shape [H]."""
    logits = plain_logits(directory, (*prefix_ids, *continuation_ids)) / temperature
    if removed_id is not None:
        logits[:, removed_id] = -torch.inf
    logprobs = torch.log_softmax(logits, dim=-1)
    positions = enumerate(continuation_ids, start=len(prefix_ids) - 1)
    return [float(logprobs[position, token_id]) for position, token_id in positions]


def plain_score(
    directories: tuple[Path, Path], context: str, target: str, thoughts: Sequence[str]
) -> tuple[list[float], float]:
    """RLP eq. 3 for every thought, and eq. 4 (no thought)."""
    policy, baseline = directories
    thinking = [
        sum(
            plain_logprobs(
                policy, (*ids_of(context), OPEN_ID, *ids_of(t), CLOSE_ID), ids_of(target)
            )
        )
        for t in thoughts
    ]
    no_think = plain_logprobs(baseline, ids_of(context), ids_of(target), removed_id=OPEN_ID)
    return thinking, sum(no_think)


def plain_entropies(
    directory: Path, token_ids: Sequence[int], top_k: int, renormalise: bool
) -> list[float]:
    """Entropies of predicting every token but the first."""
    probabilities = torch.softmax(plain_logits(directory, token_ids)[:-1], dim=-1)
    top = probabilities.topk(top_k, dim=-1).values
    if renormalise:
        top = top / top.sum(dim=-1, keepdim=True)
    entropies: list[float] = (-(top * top.log()).sum(dim=-1)).tolist()
    return entropies
