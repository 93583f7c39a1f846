"""The gRPC server of the reward service: messages to plain values and back, and nothing else.

Design: :class:`services.reward.service.RewardService` validates and answers every request; HTTP calls the
same methods, so the two transports cannot diverge. Messages arrive here as bytes, because gRPC would parse
and serialise them on the event loop: large ones are converted in threads, after their items have been
counted. A client that cancels, or whose deadline passes, cancels the service's method, which removes its
work from the queue. The price is a table in place of the generated servicer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from forethought.errors import InvalidInput
from forethought.rpc.errors import errors_as_status
from forethought.wire import reward_codec as codec
from forethought.wire.codec import check_wire_version
from forethought.wire.v1 import reward_service_pb2 as pb
from services.reward.limits import Limits
from services.reward.service import RewardService

_PEER = "the client of the reward service"


@dataclass(frozen=True, slots=True)
class Method:
    """One method: its request message, its arguments from it, and the reply message of its answer.

    Example:
        ``METHODS["Score"].arguments(data, limits)``
    """

    message: type[Any]
    body: Callable[[Any], dict[str, Any]]
    reply: Callable[[Mapping[str, Any]], Any]

    def arguments(self, data: bytes, limits: Limits) -> dict[str, Any]:
        """The service's arguments of a request.

        Raises:
            InvalidInput: not such a message, or of another wire version.
            TooLarge: too many items, thoughts or continuations.
        """
        try:
            request = self.message.FromString(data)
        except DecodeError as error:
            raise InvalidInput(
                f"got {len(data)} bytes that are no {self.message.DESCRIPTOR.name}; expected a message of "
                "proto/forethought/wire/v1/reward_service.proto"
            ) from error
        check_wire_version(request.wire_version, _PEER)
        items = getattr(request, "items", ())
        limits.check_items(len(items))
        limits.check_thoughts(sum(len(getattr(item, "thoughts", ())) for item in items))
        limits.check_thoughts(len(getattr(request, "continuations", ())), "continuations")
        return self.body(request)

    def answer(self, found: Mapping[str, Any]) -> bytes:
        """The reply, serialised."""
        serialised: bytes = self.reply(found).SerializeToString()
        return serialised


METHODS = {
    "Score": Method(pb.ScoreRequest, codec.score_body, codec.score_reply),
    "Logprobs": Method(pb.LogprobsRequest, codec.logprobs_body, codec.logprobs_reply),
    "Match": Method(pb.MatchRequest, codec.match_body, codec.match_reply),
    "Entropy": Method(pb.EntropyRequest, codec.entropy_body, codec.entropy_reply),
    "Models": Method(pb.ModelsRequest, lambda _: {}, codec.models_reply),
}
"""The methods of ``forethought.wire.v1.Reward``, each answered by the service's method of its name."""


class RewardServicer:
    """Serves ``forethought.wire.v1.Reward`` from the service that also backs HTTP."""

    service_name = pb.DESCRIPTOR.services_by_name["Reward"].full_name

    def __init__(self, service: RewardService) -> None:
        self._service = service

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register this servicer with a server."""
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._answering(name)) for name in METHODS
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(self.service_name, handlers),)
        )

    def _answering(
        self, name: str
    ) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
        method = METHODS[name]

        async def answer(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            service = self._service
            async with errors_as_status(context):
                service.memory.take(len(data))
                try:
                    convert = service.conversions.run
                    given = await convert(len(data), method.arguments, data, service.limits)
                    found = getattr(service, name.lower())(**given)
                    found = await found if isawaitable(found) else found
                    return await convert(len(data), method.answer, found)
                finally:
                    service.memory.release(len(data))
            raise AssertionError("unreachable: the call was aborted")

        return answer
