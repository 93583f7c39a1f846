"""Tokens, given as a value or in a file that is reloaded when it changes.

Design: a file holds one token per line; the first is sent, all are accepted. So a token is rotated
without a restart and without rejecting anyone: add the new one below, move it to the top once every
server has it, then remove the old one. A file's modification time is checked at most once a second,
because every call needs its tokens. The price is that a removed token is accepted for up to a second
longer.

If a file becomes unreadable or empty while a process runs, the previous tokens stay valid and one
warning is logged: an editor that truncates before it writes must not lock everyone out. Messages name
files and lines, never a token.
"""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

from forethought.errors import InvalidInput

LOOK_INTERVAL_S = 1.0
"""Minimum interval between two checks of a token file."""

log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


class Tokens:
    """Equivalent tokens: any of them is accepted, the first is sent.

    Example:
        ``Tokens(("5f1c…", "the-one-before")).accept("5f1c…")``
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values = tuple(values)

    def now(self) -> tuple[str, ...]:
        """The tokens as they are now."""
        return self._values

    def first(self) -> str | None:
        """The token to send, or None."""
        return next(iter(self.now()), None)

    def accept(self, presented: str) -> bool:
        """Whether ``presented`` is one of these, compared in constant time."""
        if not presented.isascii():  # tokens are ASCII, and compare_digest takes nothing else
            return False
        matches = [hmac.compare_digest(presented, token) for token in self.now()]
        return any(matches)

    def __bool__(self) -> bool:
        return bool(self.now())


class FileTokens(Tokens):
    """The tokens of a file, reloaded when it changes.

    Raises:
        InvalidInput: the file cannot be read, holds no token, or holds a malformed one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._next_check_s = time.monotonic() + LOOK_INTERVAL_S
        super().__init__(read_tokens(path))

    def now(self) -> tuple[str, ...]:
        """The current tokens, or those of the last successful read."""
        if time.monotonic() >= self._next_check_s:
            self._next_check_s = time.monotonic() + LOOK_INTERVAL_S
            self._reload_if_changed()
        return self._values

    def _reload_if_changed(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # taken before the read: a change in between is seen at the next check
        try:
            self._values = read_tokens(self._path)
        except InvalidInput as error:
            log.warning("%s; keeping the previous tokens", error)
        else:
            log.info("reloaded %s: %d tokens", self._path, len(self._values))


def tokens_of(value: str, file: str, key: str) -> Tokens:
    """The tokens of a value or a file; empty if neither is given.

    ``key`` names the value's setting, such as ``auth.token``; the file's is ``key_file``.

    Raises:
        InvalidInput: both are given, or the one given is not a valid token.
    """
    if value and file:
        raise InvalidInput(f"both {key} and {key}_file are given; expected one of them")
    if file:
        return FileTokens(Path(file).expanduser())
    if value:
        check_token(value, key)
    return Tokens((value,) if value else ())


def read_tokens(path: Path) -> tuple[str, ...]:
    """One token per line; blank lines and lines that begin with ``#`` are skipped.

    Raises:
        InvalidInput: the file cannot be read, holds no token, or holds a malformed one.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InvalidInput(
            f"cannot read the token file {path}: {reason}; expected a text file with one token "
            "per line that this process may read"
        ) from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
    tokens = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    for number, token in tokens:
        check_token(token, f"line {number} of the token file {path}")
    if not tokens:
        raise InvalidInput(
            f"the token file {path} holds no token; expected at least one line, such as the "
            "output of: openssl rand -hex 32"
        )
    return tuple(token for _, token in tokens)


def check_token(token: str, where: str) -> None:
    """Refuse a token that cannot be sent in a header.

    Raises:
        InvalidInput: whitespace or a character outside printable ASCII; the token is not shown.
    """
    if any(not "!" <= character <= "~" for character in token):
        raise InvalidInput(
            f"{where} holds whitespace or a character outside printable ASCII; expected a token of "
            "letters, digits and punctuation, such as the output of: openssl rand -hex 32"
        )


def _stamp(path: Path) -> _Stamp | None:
    """A value that changes when the file is written or replaced; None if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
