"""Access control of a server: which token may call which endpoint.

Design: closed by default. A server without tokens does not start unless ``auth.open`` is set, so a
forgotten setting can only make a service stricter. The price is one more setting on a laptop, which
``forethought up`` and ``demo`` set themselves.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
from enum import IntEnum
from typing import TYPE_CHECKING

from forethought.auth.tokens import Tokens, tokens_of
from forethought.errors import Forbidden, InvalidInput, Unauthenticated

if TYPE_CHECKING:
    from forethought.config.sections import AuthSection

log = logging.getLogger(__name__)

_EXPECTED = "expected the header 'Authorization: Bearer TOKEN'"
_HOW = (
    "auth.token_file=FILE or FORETHOUGHT_AUTH_TOKEN (such as the output of: openssl rand -hex 32), or "
    "auth.open=true to accept every caller that can reach the ports"
)


class Role(IntEnum):
    """What a token grants; a higher role includes the lower ones."""

    CLIENT = 1
    """Requests for rewards, log-probs and thoughts."""
    RUN = 2
    """Everything, including weight pushes."""


class Guard:
    """Checks callers against the run's and the clients' tokens. ``is_open``: no token is required.

    Example:
        ``Guard(run=Tokens(("5f1c…",))).check("Bearer 5f1c…", Role.RUN)``
    """

    def __init__(
        self,
        run: Tokens | None = None,
        client: Tokens | None = None,
        *,
        is_open: bool = False,
    ) -> None:
        self._run, self._client = run or Tokens(), client or Tokens()
        self.is_open = is_open

    @classmethod
    def of_replica(cls, section: AuthSection) -> Guard:
        """The guard of a run's replica, which receives weight pushes.

        Raises:
            InvalidInput: a token file is unusable, or there is no token that could push weights.
        """
        guard = cls._of(section)
        if not (guard.is_open or guard._run):
            raise InvalidInput(
                f"no run token is set, and one is required to authorize weight pushes; expected {_HOW}"
            )
        return guard

    @classmethod
    def standalone(cls, section: AuthSection) -> tuple[Guard, str | None]:
        """The guard of a standalone service, and the client token generated for it if none is given.

        Raises:
            InvalidInput: a token file is unusable.
        """
        guard = cls._of(section)
        if guard.is_open or guard._run or guard._client:
            return guard, None
        generated_token = secrets.token_hex(24)  # a first "-" would be an option to a command
        return cls(client=Tokens((generated_token,))), generated_token

    @classmethod
    def _of(cls, section: AuthSection) -> Guard:
        return cls(run_tokens(section), client_tokens(section), is_open=section.open)

    def check(self, authorization: str | None, needed: Role) -> None:
        """Authorize a call by its Authorization header.

        Raises:
            Unauthenticated: no token, or one that this server does not accept.
            Forbidden: a client token where the run's is required.
        """
        if self.is_open:
            return
        token = _token_of(authorization)
        # Always compare against both, so that timing does not reveal which one matched.
        is_run, is_client = self._run.accept(token), self._client.accept(token)
        if not token or not (is_run or is_client):
            got = "a token that is not accepted here" if token else "no token"
            raise Unauthenticated(f"got {got}; {_EXPECTED} with a token this server accepts")
        if needed is Role.RUN and not is_run:
            raise Forbidden(
                "got a client token, which does not grant this call; expected the run's token "
                "(auth.token)"
            )

    def warn_if_exposed(self, host: str, what: str) -> None:
        """Log one warning if the listener ``what`` is open and reachable from other hosts."""
        if self.is_open and not is_loopback(host):
            log.warning(
                "%s on %s accepts every caller without a token; set auth.token_file, or listen on "
                "127.0.0.1",
                what,
                host or "every interface",
            )


def run_tokens(section: AuthSection) -> Tokens:
    """The run's tokens.

    Raises:
        InvalidInput: the file is unusable, or a token is malformed.
    """
    return tokens_of(section.token.get_secret_value(), section.token_file, "auth.token")


def client_tokens(section: AuthSection) -> Tokens:
    """The clients' tokens; raises like :func:`run_tokens`."""
    return tokens_of(
        section.client_token.get_secret_value(), section.client_token_file, "auth.client_token"
    )


def is_loopback(host: str) -> bool:
    """Whether a listener on ``host`` is reachable only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token_of(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
