"""The messages of each method: plain bodies and replies, as over HTTP, to and from protobuf.

Design: one table, so that transports are independent of methods and clients independent of protobuf. The
price is that token ids pass through Python lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from forethought.clients.rollout_requests import GenerateRequest
from forethought.errors import InvalidInput
from forethought.wire import reward_codec
from forethought.wire.codec import (
    WIRE_VERSION,
    prompting_to_proto,
    sampling_to_proto,
    thought_from_proto,
)
from forethought.wire.packing import packable_ids
from forethought.wire.v1 import rollout_service_pb2
from forethought.wire.v1.reward_service_pb2_grpc import RewardStub
from forethought.wire.v1.rollout_service_pb2_grpc import RolloutsStub


@dataclass(frozen=True, slots=True)
class Method:
    """How to call one method: its service's stub, body to request message, reply message to plain reply.

    Example:
        ``METHODS["Generate"].encode(request)``
    """

    stub: Callable[[Any], Any]
    request: Callable[[Any], Any]
    answer: Callable[[Any], Any]

    def encode(self, body: Any) -> Any:
        """Encode a caller's body as a request message.

        Raises:
            InvalidInput: a value has a type or size that the message cannot hold.
        """
        try:
            return self.request(body)
        except InvalidInput:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InvalidInput(
                f"the request cannot be encoded: {error}; expected valid texts, lists of token ids, "
                "and versions, counts and seeds from 0 to 2**64 - 1"
            ) from error


def _generate_request(body: GenerateRequest) -> rollout_service_pb2.GenerateRequest:
    return rollout_service_pb2.GenerateRequest(
        wire_version=WIRE_VERSION,
        prefix_ids=packable_ids(body.prefix_ids, "prefix_ids"),
        context_ids=packable_ids(body.context_ids, "context_ids"),
        prompting=prompting_to_proto(body.prompting) if body.prompting else None,
        sampling=sampling_to_proto(body.sampling),
        seed=body.seed,
        epoch=body.epoch,
        min_version=body.min_version,
    )


def _generate_answer(reply: rollout_service_pb2.GenerateReply) -> dict[str, Any]:
    return {
        "thoughts_G": tuple(map(thought_from_proto, reply.thoughts)),
        "epoch": reply.epoch,
        "replica": reply.replica,
    }


METHODS: Mapping[str, Method] = {
    "Generate": Method(RolloutsStub, _generate_request, _generate_answer),
    "Score": Method(RewardStub, reward_codec.score_request, reward_codec.score_answer),
    "Logprobs": Method(RewardStub, reward_codec.logprobs_request, reward_codec.logprobs_answer),
    "Match": Method(RewardStub, reward_codec.match_request, reward_codec.match_answer),
    "Entropy": Method(RewardStub, reward_codec.entropy_request, reward_codec.entropy_answer),
    "Models": Method(RewardStub, reward_codec.models_request, reward_codec.models_answer),
}
