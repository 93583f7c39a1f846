"""The gRPC server of the rollout service: thoughts on request, from any engine.

Design: a request becomes a task with one position and no target, so engines need no extra code and a
client's thoughts are sampled exactly like the run's. Only the seed matters: the task's id is always 0. The
price is that engines must not use a task's id as a unique key.

A request that the engine refuses is the client's error, INVALID_ARGUMENT; one that it accepted and could
not finish is reported as an internal error of this service.

The server does not wait for weights: a policy older than ``min_version`` returns UNAVAILABLE, which clients
retry. A client that cancels, or whose deadline passes, cancels ``Engine.generate``.
"""

from __future__ import annotations

import asyncio
import math

import grpc

from forethought.errors import ForethoughtError, InvalidInput, NotReady, Stale
from forethought.rpc.errors import errors_as_status
from forethought.types import Document, Position, Prompting, Sampling, Task, WeightManifest
from forethought.wire.codec import (
    WIRE_VERSION,
    check_wire_version,
    prompting_from_proto,
    sampling_from_proto,
    thought_to_proto,
)
from forethought.wire.packing import unpack_ids
from forethought.wire.v1 import rollout_service_pb2, rollout_service_pb2_grpc
from services.rollout.engine import Engine
from services.rollout.limits import GenerateLimits, Waiting

_BYTES_PER_ID = 4


class RolloutServicer(rollout_service_pb2_grpc.RolloutsServicer):
    """Serves ``forethought.wire.v1.Rollouts`` from an engine, within ``limits``: a short message could
    otherwise request a million thoughts.
    """

    service_name = rollout_service_pb2.DESCRIPTOR.services_by_name["Rollouts"].full_name

    def __init__(self, engine: Engine, replica: str, limits: GenerateLimits | None = None) -> None:
        self._engine = engine
        self._replica = replica
        self._limits = limits or GenerateLimits()
        self._waiting = Waiting(self._limits.max_waiting_tokens)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register this servicer."""
        rollout_service_pb2_grpc.add_RolloutsServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Generate(
        self,
        request: rollout_service_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext,
    ) -> rollout_service_pb2.GenerateReply:
        """Sample one group of thoughts."""
        async with errors_as_status(context):
            return await self._generate(request)

    async def _generate(
        self, request: rollout_service_pb2.GenerateRequest
    ) -> rollout_service_pb2.GenerateReply:
        check_wire_version(request.wire_version, "the client that requests thoughts")
        epoch = _epoch_served(self._engine.serving, request)
        sampling = sampling_from_proto(request.sampling)
        _check_sampling(sampling)
        num_tokens = self._limits.check(_num_prefix_tokens(request), sampling)
        task = _task(request, epoch, sampling)
        if reason := self._engine.refusal(task):
            raise InvalidInput(reason)
        with self._waiting.counted(num_tokens):
            [rollout] = await self._engine.generate([task])
        if rollout.error is not None:
            raise ForethoughtError(rollout.error)
        serving = self._engine.serving
        if serving is None or serving.epoch != epoch:
            raise NotReady("the run was restarted while sampling; retry the request")
        return await asyncio.to_thread(
            rollout_service_pb2.GenerateReply,
            wire_version=WIRE_VERSION,
            thoughts=map(thought_to_proto, rollout.thoughts_KG[0]),
            epoch=epoch,
            replica=self._replica,
        )


def _epoch_served(
    serving: WeightManifest | None, request: rollout_service_pb2.GenerateRequest
) -> int:
    """The epoch of the policy served, which must be at least as new as requested.

    Raises:
        NotReady: no policy yet, or an older one than requested.
        Stale: the requested epoch is over.
    """
    if serving is None:
        raise NotReady("no policy weights yet; the learner has to publish first")
    epoch = request.epoch if request.HasField("epoch") else serving.epoch
    if serving.epoch > epoch:
        raise Stale(
            f"got a request for epoch {epoch}, this replica serves epoch {serving.epoch}; the run was "
            "restarted: request its current epoch, or none"
        )
    if serving.order < (epoch, request.min_version):
        raise NotReady(
            f"got a request for version {request.min_version} of epoch {epoch}, this replica serves "
            f"version {serving.version} of epoch {serving.epoch}; retry once it is published"
        )
    return serving.epoch


def _num_prefix_tokens(request: rollout_service_pb2.GenerateRequest) -> int:
    """The tokens before a thought, counted without unpacking them."""
    prompting = request.prompting
    packed = (request.prefix_ids, request.context_ids, prompting.head_ids, prompting.bridge_ids)
    return sum(map(len, packed)) // _BYTES_PER_ID


def _task(request: rollout_service_pb2.GenerateRequest, epoch: int, sampling: Sampling) -> Task:
    context_ids, prompting = _branch(request)
    return Task(
        task_id=0,
        epoch=epoch,
        batch=0,
        min_version=request.min_version,
        objective="",
        objective_json="{}",
        document=Document("", "", context_ids),
        positions_K=(Position(len(context_ids), ()),),
        prompting=prompting,
        sampling=sampling,
        seed=request.seed,
    )


def _branch(
    request: rollout_service_pb2.GenerateRequest,
) -> tuple[tuple[int, ...], Prompting]:
    """Context and prompting; a prefix is a context without prompting."""
    prefix_ids, context_ids = unpack_ids(request.prefix_ids), unpack_ids(request.context_ids)
    prompting = prompting_from_proto(request.prompting)
    is_prompted = request.HasField("prompting") or bool(context_ids)
    if prefix_ids and is_prompted:
        raise InvalidInput(
            "got prefix_ids and context_ids or prompting; expected either a whole prefix or a "
            "context with its prompting; remove one of them"
        )
    if not prefix_ids and not prompting.thinking_prefix(context_ids):
        raise InvalidInput(
            "the prefix is empty; expected at least one token in prefix_ids, or in context_ids "
            "and prompting; give the tokens to think after"
        )
    return (prefix_ids or context_ids), prompting


def _check_sampling(sampling: Sampling) -> None:
    if sampling.group_size < 1 or sampling.max_thought_tokens < 1:
        raise InvalidInput(
            f"got group_size {sampling.group_size} and max_thought_tokens "
            f"{sampling.max_thought_tokens}; expected at least 1 of each; set both in sampling"
        )
    if not (math.isfinite(sampling.temperature) and sampling.temperature > 0):
        raise InvalidInput(
            f"got temperature {sampling.temperature}; expected a finite number above 0; "
            "for nearly greedy sampling use 0.01"
        )
