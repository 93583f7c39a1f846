"""Which transport a URL names.

Design: apart from the transports and from what they carry, so that importing a client loads neither an HTTP
library nor grpc, and only the one that a URL needs is loaded later.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from forethought.auth import Bearer
from forethought.clients.retrying import AsyncTransport, Transport
from forethought.errors import InvalidInput


def transport_of(url: str, service: str, bearer: Bearer) -> Transport:
    """The blocking transport that the url's scheme names; loads httpx or grpc, not both.

    Raises:
        InvalidInput: the url has another scheme or no host, or the service is not served so.
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
            "grpc://host:port; write it in full"
        )
    return parts.scheme, parts.netloc


def _check_http(url: str, service: str) -> None:
    if service != "reward":
        raise InvalidInput(
            f"got the url {url!r}; the {service} service speaks gRPC alone; expected "
            "grpc://host:port, the address that the replica logs at start"
        )
