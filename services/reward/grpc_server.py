"""The gRPC server of the reward service: messages to plain values and back, and nothing else.

Design: :class:`services.reward.service.RewardService` validates and answers every request; HTTP calls the
same methods, so the two transports cannot diverge. A client that cancels, or whose deadline passes, cancels
the service's method, which removes its work from the queue.
"""

from __future__ import annotations

import grpc

from forethought.rpc.errors import errors_as_status
from forethought.wire import reward_codec as codec
from forethought.wire.codec import check_wire_version
from forethought.wire.v1 import reward_service_pb2, reward_service_pb2_grpc
from services.reward.service import RewardService

_PEER = "the client of the reward service"


class RewardServicer(reward_service_pb2_grpc.RewardServicer):
    """Serves ``forethought.wire.v1.Reward`` from the service that also backs HTTP."""

    service_name = reward_service_pb2.DESCRIPTOR.services_by_name["Reward"].full_name

    def __init__(self, service: RewardService) -> None:
        self._service = service

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register this servicer with a server."""
        reward_service_pb2_grpc.add_RewardServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Score(
        self, request: reward_service_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> reward_service_pb2.ScoreReply:
        """Rewards and advantages of every item's thoughts."""
        async with errors_as_status(context):
            check_wire_version(request.wire_version, _PEER)
            answer = await self._service.score(**codec.score_body(request))
            return codec.score_reply(answer)

    async def Logprobs(
        self, request: reward_service_pb2.LogprobsRequest, context: grpc.aio.ServicerContext
    ) -> reward_service_pb2.LogprobsReply:
        """Log-probs of continuations after one prefix."""
        async with errors_as_status(context):
            check_wire_version(request.wire_version, _PEER)
            answer = await self._service.logprobs(**codec.logprobs_body(request))
            return codec.logprobs_reply(answer)

    async def Match(
        self, request: reward_service_pb2.MatchRequest, context: grpc.aio.ServicerContext
    ) -> reward_service_pb2.MatchReply:
        """Whether predictions are correct."""
        async with errors_as_status(context):
            check_wire_version(request.wire_version, _PEER)
            answer = await self._service.match(**codec.match_body(request))
            return codec.match_reply(answer)

    async def Entropy(
        self, request: reward_service_pb2.EntropyRequest, context: grpc.aio.ServicerContext
    ) -> reward_service_pb2.EntropyReply:
        """Entropy of the prediction of every token but the first."""
        async with errors_as_status(context):
            check_wire_version(request.wire_version, _PEER)
            answer = await self._service.entropy(**codec.entropy_body(request))
            return codec.entropy_reply(answer)

    async def Models(
        self, request: reward_service_pb2.ModelsRequest, context: grpc.aio.ServicerContext
    ) -> reward_service_pb2.ModelsReply:
        """The served models and the objectives."""
        async with errors_as_status(context):
            check_wire_version(request.wire_version, _PEER)
            return codec.models_reply(self._service.models())
