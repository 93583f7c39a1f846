"""The caller's credential: the first of its tokens, in the same header over HTTP and gRPC.

Design: the header is built per call, so a token rotated in its file is used from the next call on. The
price is one clock read per call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from forethought.auth.tokens import Tokens, check_token, tokens_of

if TYPE_CHECKING:
    from forethought.config.sections import AuthSection

_PREFIX = "FORETHOUGHT_AUTH_"
_ROLES = ("TOKEN", "CLIENT_TOKEN")


class Bearer:
    """A caller's credential; without a token it sends none.

    Example:
        ``Bearer(Tokens(("5f1c…",))).header()`` is ``(("authorization", "Bearer 5f1c…"),)``
    """

    def __init__(self, tokens: Tokens | None = None) -> None:
        self._tokens = tokens or Tokens()

    @classmethod
    def of_run(cls, section: AuthSection) -> Bearer:
        """The credential with which the learner pushes weights.

        Raises:
            InvalidInput: the token file is unusable.
        """
        return cls(tokens_of(section.token.get_secret_value(), section.token_file, "auth.token"))

    @classmethod
    def of_client(
        cls, token: str | None = None, environment: Mapping[str, str] = os.environ
    ) -> Bearer:
        """A client's credential: the given token ("" for none), else one from the environment.

        In the environment the first that is set is used: FORETHOUGHT_AUTH_TOKEN, …_TOKEN_FILE,
        …_CLIENT_TOKEN, …_CLIENT_TOKEN_FILE.

        Raises:
            InvalidInput: the token is malformed, or its file is unusable.
        """
        if token is not None:
            check_token(token, "token")
            return cls(Tokens((token,) if token else ()))
        for role in _ROLES:
            value = environment.get(f"{_PREFIX}{role}", "")
            file = environment.get(f"{_PREFIX}{role}_FILE", "")
            if value or file:
                return cls(tokens_of(value, "" if value else file, f"{_PREFIX}{role}"))
        return cls()

    def header(self) -> tuple[tuple[str, str], ...]:
        """The header as (name, value) pairs; empty without a token."""
        token = self._tokens.first()
        return () if token is None else (("authorization", f"Bearer {token}"),)
