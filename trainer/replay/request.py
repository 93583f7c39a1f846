"""Thoughts of the learner's current version on request, for a check that has none at hand.

Design: where the learner is the slower side and ``learner.max_staleness`` is above 0, every result is of an
older version by the time it is learned from. So the replica is asked over gRPC, for thoughts after a prompt
it has served before. The reply is held to the same rules as a result.
"""

from __future__ import annotations

from dataclasses import replace

from forethought.auth import Bearer
from forethought.clients import Retries
from forethought.clients.connect import async_transport_of
from forethought.clients.retrying import send_async
from forethought.clients.rollout_requests import generate
from forethought.conformance import rollout_fault
from forethought.errors import InvalidInput
from forethought.types import Rollout, Task
from trainer.replay.excerpt import MAX_TOKENS, MAX_TOKENS_PER_THOUGHT

_RETRIES = Retries(
    max_attempts=1000, longest_wait_s=1.0
)  # until the deadline, as weights are pushed


async def requested_rollout(
    address: str, bearer: Bearer, task: Task, *, version: int, vocabulary: int, timeout_s: float
) -> Rollout:
    """A rollout of short thoughts at the first position of ``task``, sampled by ``version``.

    Raises:
        ForethoughtError: the replica did not serve ``version`` within ``timeout_s`` seconds, or its reply
            is no such rollout.
    """
    position = task.positions_K[0]
    sampling = replace(
        task.sampling,
        group_size=MAX_TOKENS // MAX_TOKENS_PER_THOUGHT,
        max_thought_tokens=min(MAX_TOKENS_PER_THOUGHT, task.sampling.max_thought_tokens),
        prediction_tokens=0,
    )
    prefix_ids = task.prompting.thinking_prefix(task.document.token_ids_N[: position.index])
    request = generate(sampling, prefix_ids, (), None, task.seed, task.epoch, version)
    transport = async_transport_of(f"grpc://{address}", "rollout", bearer)
    try:
        reply = await send_async(transport, request, timeout_s, _RETRIES)
    finally:
        await transport.close()
    asked = replace(task, positions_K=(position,), sampling=sampling, min_version=version)
    rollout = Rollout(asked, (reply.thoughts_G,), reply.replica)
    if fault := rollout_fault(rollout, vocabulary, version):
        raise InvalidInput(f"the reply of {address} is no rollout of the request: {fault}")
    return rollout
