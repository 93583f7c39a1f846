"""Select the transport for a URL.

Design: separate from the transports and from the messages, so that importing a client loads neither an HTTP
library nor grpc, and only the one that a URL needs is loaded later.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from forethought.auth import Bearer
from forethought.clients.retrying import AsyncTransport, Transport
from forethought.errors import InvalidInput


def transport_of(url: str, service: str, bearer: Bearer) -> Transport:
    """The blocking transport for the URL's scheme; loads httpx2 or grpc, not both.

    Raises:
        InvalidInput: the URL has another scheme or no host, or the service does not support the scheme.
    """
    scheme, address = _parts(url)
    if scheme == "grpc":
        from forethought.clients.grpc_transport import GrpcTransport

        return GrpcTransport(address, bearer)
    _check_http(url, service)
    from forethought.clients.http_transport import HttpTransport

    return HttpTransport(url, bearer)


def async_transport_of(url: str, service: str, bearer: Bearer) -> AsyncTransport:
    """:func:`transport_of`, for asyncio."""
    scheme, address = _parts(url)
    if scheme == "grpc":
        from forethought.clients.grpc_transport import AsyncGrpcTransport

        return AsyncGrpcTransport(address, bearer)
    _check_http(url, service)
    from forethought.clients.http_transport import AsyncHttpTransport

    return AsyncHttpTransport(url, bearer)


def _parts(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "grpc") or not parts.netloc:
        raise InvalidInput(
            f"got the url {url!r}; expected http://host:port, https://host:port or "
            "grpc://host:port; give the full url"
        )
    return parts.scheme, parts.netloc


def _check_http(url: str, service: str) -> None:
    if service != "reward":
        raise InvalidInput(
            f"got the url {url!r}; the {service} service is served over gRPC only; expected "
            "grpc://host:port, the address that the replica logs at startup"
        )
