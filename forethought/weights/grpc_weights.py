"""gRPC transport for weights: the replica's servicer and the learner's client.

Design: this file only converts. The receiver decides whether a push is valid, the publisher when to
push; both use dataclasses and this project's errors, and only this file sees protobuf and status codes.
The price is a second, dataclass form of the header.

One chunk is one message: message sizes are unlimited on both sides, so ``chunk_bytes`` is the only size
to choose. Every call has a deadline. The sender waits for a go-ahead after its header, because with
grpc.aio 1.85 a stream rejected while it was being written ended with INTERNAL instead of the actual
status in 16 of 100 trials; the price is one round trip per push.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

import grpc

from forethought.auth.bearer import Bearer
from forethought.errors import (
    InvalidInput,
)
from forethought.rpc.channel import open_channel
from forethought.rpc.errors import errors_as_status, status_as_errors
from forethought.types import WeightManifest
from forethought.weights.receiver import WeightReceiver
from forethought.weights.snapshot import PushedFile, PushHeader, Snapshot, header_of
from forethought.wire.codec import (
    WIRE_VERSION,
    check_wire_version,
    manifest_from_proto,
    manifest_to_proto,
)
from forethought.wire.v1 import weights_pb2, weights_pb2_grpc

_GO_AHEAD = "forethought-go-ahead"


class WeightsServicer(weights_pb2_grpc.WeightsServicer):
    """Serves ``forethought.wire.v1.Weights`` from a receiver."""

    service_name = weights_pb2.DESCRIPTOR.services_by_name["Weights"].full_name

    def __init__(self, receiver: WeightReceiver) -> None:
        self._receiver = receiver

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register this servicer."""
        weights_pb2_grpc.add_WeightsServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    async def Status(
        self, request: weights_pb2.StatusRequest, context: grpc.aio.ServicerContext
    ) -> weights_pb2.StatusReply:
        """The manifest this replica holds of each model."""
        async with errors_as_status(context):
            check_wire_version(request.wire_version, "the peer requesting status")
        return weights_pb2.StatusReply(
            wire_version=WIRE_VERSION,
            replica_id=self._receiver.replica_id,
            holding=map(manifest_to_proto, self._receiver.holding.values()),
        )

    async def Push(
        self,
        request_iterator: AsyncIterator[weights_pb2.PushMessage],
        context: grpc.aio.ServicerContext,
    ) -> weights_pb2.PushReply:
        """Accept one push as a whole, or reject it with the status of its error."""
        async with errors_as_status(context):
            push = _IncomingPush(request_iterator, context)
            try:
                held = await self._receiver.receive(await push.header(), push.chunks())
            except InvalidInput:
                await push.drain()
                raise
        return weights_pb2.PushReply(holding=manifest_to_proto(held))


class WeightsClient:
    """The learner's connection to one replica; an async context manager. ``bearer`` is sent with every
    call (default: no token).

    Example:
        ``async with WeightsClient("10.0.0.7:50051", chunk_bytes=1 << 20) as client: ...``
    """

    def __init__(self, address: str, chunk_bytes: int, bearer: Bearer | None = None) -> None:
        self.address = address
        self._chunk_bytes = chunk_bytes
        self._bearer = bearer or Bearer()
        self._channel = open_channel(address)
        self._stub = weights_pb2_grpc.WeightsStub(self._channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> WeightsClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._channel.close()

    async def status(self, timeout_s: float) -> dict[str, WeightManifest]:
        """The manifests the replica holds, by model.

        Raises:
            ForethoughtError: the replica is unreachable, does not respond, or speaks another wire
                version; the subclass corresponds to its status code.
        """
        request = weights_pb2.StatusRequest(wire_version=WIRE_VERSION)
        with status_as_errors(self.address):
            reply = await self._stub.Status(
                request, timeout=timeout_s, metadata=self._bearer.header()
            )
        check_wire_version(reply.wire_version, f"the replica at {self.address}")
        return {message.model: manifest_from_proto(message) for message in reply.holding}

    async def push(
        self, snapshot: Snapshot, *, weights_only: bool, timeout_s: float
    ) -> WeightManifest:
        """Push a snapshot, or only its weights, and return the manifest the replica then holds.

        Raises:
            ForethoughtError: rejected or not delivered; nothing was applied, unless only the reply was
                lost, which the next :meth:`status` shows. A push rejected for its token may surface as
                an internal error, because the server never reads the header; :meth:`status` is rejected
                for the same reason and always reports it.
        """
        header = header_of(snapshot, weights_only=weights_only)
        call = self._stub.Push(timeout=timeout_s, metadata=self._bearer.header())
        try:
            with status_as_errors(self.address):
                await self._send(call, snapshot, header)
                reply = await call
        finally:
            call.cancel()  # if this push is cancelled; otherwise the call has already ended
        return manifest_from_proto(reply.holding)

    async def _send(
        self, call: grpc.aio.StreamUnaryCall, snapshot: Snapshot, header: PushHeader
    ) -> None:
        """Write the header and, after the go-ahead, the bytes."""
        try:
            await call.write(weights_pb2.PushMessage(header=_header_to_proto(header)))
            if _GO_AHEAD not in await call.initial_metadata():
                return
            for file in header.files:
                data = memoryview(snapshot.files[file.name])
                for start in range(0, len(data), self._chunk_bytes):
                    chunk = bytes(data[start : start + self._chunk_bytes])
                    await call.write(weights_pb2.PushMessage(chunk=chunk))
            await call.done_writing()
        except asyncio.InvalidStateError:
            return  # the call ended during the write; its status gives the reason


class _IncomingPush:
    """The messages of one push as a header and chunks."""

    def __init__(
        self,
        messages: AsyncIterator[weights_pb2.PushMessage],
        context: grpc.aio.ServicerContext,
    ) -> None:
        self._messages = messages
        self._context = context
        self._went_ahead = False

    async def header(self) -> PushHeader:
        """The first message.

        Raises:
            InvalidInput: it is not a header, or of another wire version.
        """
        first = await anext(self._messages, None)
        if first is None or first.WhichOneof("part") != "header":
            got = "nothing" if first is None else first.WhichOneof("part") or "an empty message"
            raise InvalidInput(f"a push opened with {got}; expected its header first")
        check_wire_version(first.header.wire_version, "the pushing peer")
        return _header_from_proto(first.header)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks after the header; requesting the first one sends the go-ahead."""
        self._went_ahead = True
        await self._context.send_initial_metadata(((_GO_AHEAD, "1"),))
        async for message in self._messages:
            if message.WhichOneof("part") != "chunk":
                raise InvalidInput(
                    "a push holds something other than chunks after its header; push again"
                )
            yield message.chunk

    async def drain(self) -> None:
        """Consume what is still being sent, so that the sender receives the actual error."""
        if self._went_ahead:
            async for _ in self._messages:
                pass


def _header_from_proto(header: weights_pb2.PushHeader) -> PushHeader:
    return PushHeader(
        manifest=manifest_from_proto(header.manifest),
        codec=header.codec,
        files=tuple(PushedFile(f.name, f.num_bytes, f.sha256) for f in header.files),
        base=manifest_from_proto(header.base) if header.HasField("base") else None,
    )


def _header_to_proto(header: PushHeader) -> weights_pb2.PushHeader:
    return weights_pb2.PushHeader(
        wire_version=WIRE_VERSION,
        manifest=manifest_to_proto(header.manifest),
        codec=header.codec,
        base=manifest_to_proto(header.base) if header.base else None,
        files=[
            weights_pb2.PushedFile(name=f.name, num_bytes=f.num_bytes, sha256=f.sha256)
            for f in header.files
        ],
    )
