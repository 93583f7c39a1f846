"""Channels to replicas, asyncio and blocking: the only place that opens one.

Design: every channel is private to its client (its connections and their reconnect backoff are not shared
within the process), unlimited in message size, and ignores ``http_proxy`` and its like: replicas are
reached within one network, where gRPC by default sends even calls to 127.0.0.1, with weights and token, to
the proxy. The price: a replica behind a proxy needs a tunnel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


def open_channel(address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
    """An asyncio channel to ``host:port``, of the running event loop, with further options."""
    return grpc.aio.insecure_channel(address, options=(*_OPTIONS, *options))


def open_blocking_channel(address: str, options: Sequence[tuple[str, Any]] = ()) -> grpc.Channel:
    """A thread-safe blocking channel to ``host:port``, with further options."""
    return grpc.insecure_channel(address, options=(*_OPTIONS, *options))
