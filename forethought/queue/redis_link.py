"""One connection pool to one Redis; its failures are raised as ``Unreachable``.

Design: short outages (a dropped connection, a failover of a second or two) are retried here with
backoff; longer ones are raised as ``Unreachable``, and the caller waits, because only the caller knows
whether it is stopping. The price of retrying is that a command whose reply was lost runs twice; every
command of this package tolerates that.

A Redis that answers and refuses for a moment (memory or disk full, loading, failing over, too many clients)
is an outage too. Refusals are recognised by the code in their text, because a script of Redis 6.2 wraps
them in an error of its own; the price is a list of codes. A credential that Redis does not accept, or does
not let do this, is none: waiting does not help.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from forethought.errors import Forbidden, InvalidInput, Unauthenticated, Unreachable

MAX_BLOCK_S = 1.0
"""The longest time one command may block in Redis; far below the socket timeout."""

_SOCKET_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 5.0
_HEALTH_CHECK_S = 30
_NUM_RETRIES = 4
_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 1.0

_SCHEMES = ("redis://", "rediss://", "unix://")
_SHOWN = ("db", "protocol", "ssl_cert_reqs", "ssl_ca_certs")

_OUTAGES = (
    exceptions.ConnectionError,  # includes a Redis that is still loading, or has too many clients
    exceptions.TimeoutError,
    exceptions.InvalidResponse,  # what answered is no Redis, such as a proxy whose Redis is gone
)
_REFUSALS = (
    "OOM",  # at maxmemory
    "MISCONF",  # it cannot write its snapshot or log
    "NOREPLICAS",  # fewer than min-replicas-to-write
    "READONLY",  # a former primary, during a failover
    "MASTERDOWN",
    "LOADING",
    "BUSY",  # running someone's script
    "CLUSTERDOWN",
    "TRYAGAIN",  # the last three: slots of a cluster are being moved
    "ASK",
    "MOVED",
)
_REFUSAL = re.compile(rf"(?:^|[:-] ?)(?:{'|'.join(_REFUSALS)})\b|max number of clients")
_UNAUTHENTICATED = re.compile(r"(?:^|[:-] ?)(?:NOAUTH|WRONGPASS|DENIED)\b")
_FORBIDDEN = re.compile(r"(?:^|[:-] ?)NOPERM\b|ACL failure in script|can't run this command")


class RedisLink:
    """The client, its registered scripts, and the error raised when Redis is unreachable.

    Raises:
        InvalidInput: the URL cannot be parsed.
    """

    def __init__(self, url: str) -> None:
        self.shown_url = hide_password(url)
        if _split(url) is None:  # its own error would show parts of the password
            raise InvalidInput(
                f"Redis URL {self.shown_url} cannot be parsed; expected something like "
                "redis://:password@host:6379/0; write @ / ? # in a password as %40 %2F %3F %23"
            )
        try:
            self.client = redis.asyncio.Redis.from_url(
                url,
                protocol=2,  # the same reply format whatever this client's default is
                socket_timeout=_SOCKET_TIMEOUT_S,
                socket_connect_timeout=_CONNECT_TIMEOUT_S,
                health_check_interval=_HEALTH_CHECK_S,
                retry=Retry(
                    ExponentialWithJitterBackoff(base=_BACKOFF_S, cap=_MAX_BACKOFF_S), _NUM_RETRIES
                ),
            )
        except ValueError as error:
            raise InvalidInput(
                f"Redis URL {self.shown_url} cannot be used ({error}); "
                "expected something like redis://:password@host:6379/0"
            ) from error
        self._scripts: dict[str, Any] = {}

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Raise Redis's outages and refusals inside the block as this project's errors.

        Raises:
            Unreachable: an outage, or a refusal that ends by itself.
            Unauthenticated, Forbidden: the credential is not accepted, or does not grant a command.
        """
        try:
            yield
        except exceptions.RedisError as error:
            if (known := self._known(error)) is None:
                raise
            raise known from error

    def _known(self, error: exceptions.RedisError) -> Exception | None:
        reply, where = _reply(error), f"Redis at {self.shown_url}"
        if _UNAUTHENTICATED.search(reply) or isinstance(error, exceptions.AuthenticationError):
            return Unauthenticated(
                f"{where} does not accept this client: {reply}; correct the password in redis.url or "
                "redis.password_file"
            )
        if _FORBIDDEN.search(reply):
            return Forbidden(
                f"{where} does not let its user do this: {reply}; expected every command but @admin "
                "and @dangerous, and INFO, on the keys forethought:*"
            )
        if refusal := _REFUSAL.search(reply):
            said = reply[refusal.start() :].lstrip(":- ")  # without what a script wrapped around it
            return Unreachable(
                f"{where} refuses for now: {said}; clients go on once it accepts commands again"
            )
        if isinstance(error, _OUTAGES):
            return Unreachable(
                f"{where} cannot be used: {type(error).__name__}: {error}; check that it runs and that "
                "FORETHOUGHT_REDIS_URL points to it; clients reconnect automatically"
            )
        return None

    async def script(self, lua: str, keys: Iterable[str], args: Iterable[object] = ()) -> Any:
        """Run one of :mod:`forethought.queue.scripts`.

        Raises:
            Unreachable: Redis does not respond, or refuses for now.
        """
        if lua not in self._scripts:
            self._scripts[lua] = self.client.register_script(lua)
        with self.reaching():
            return await self._scripts[lua](keys=list(keys), args=list(args))


def _reply(error: BaseException) -> str:
    """The error as Redis sent it.

    The client takes the codes that it knows off the text, and wraps what it gets while it connects.
    """
    if isinstance(error.__cause__, exceptions.ResponseError | exceptions.ConnectionError):
        return _reply(error.__cause__)
    code = getattr(error, "status_code", None)
    return f"{code} {error}" if code else str(error)


def is_missing_group(error: exceptions.ResponseError) -> bool:
    """Whether the error means that a stream or its group is gone (a script's error wraps the code)."""
    return "NOGROUP" in str(error) or "UNBLOCKED" in str(error)


def hide_password(url: str) -> str:
    """The URL without its secrets, for logs, errors and printed commands.

    Values of its query are shown only where they are known to be none. Where an unescaped character of a
    password makes it unclear what is a secret, all is one.
    """
    parts = _split(url)
    if parts is None:
        return f"{url.partition(':')[0]}://***" if url.startswith(_SCHEMES) else "(not a URL)"
    user_host = parts.netloc
    if parts.password is not None:
        user_host = f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}"
    query = "&".join(map(_hide_value, parts.query.split("&")))
    return f"{parts.scheme}://{user_host}{parts.path}{'?' if query else ''}{query}"


def _split(url: str) -> SplitResult | None:
    """The parts of a URL; None if it has none, or if a part may belong to an unescaped password."""
    try:
        parts = urlsplit(url)
        has_host = parts.scheme not in ("redis", "rediss") or bool(parts.hostname)
        is_clear = has_host and "@" not in parts.path and not parts.fragment and (parts.port or 1)
    except ValueError:
        return None
    return parts if is_clear and url.startswith(_SCHEMES) else None


def _hide_value(field: str) -> str:
    name, is_given, value = field.partition("=")
    if not is_given:
        return "***" if name else ""
    return field if name in _SHOWN and "@" not in value else f"{name}=***"
