"""The Redis URL with the password of a file in it.

Design: the password joins the URL when settings are resolved, so everything that connects to Redis needs
one value only. A Redis URL is never logged or written with its password. The price is that the password is
read only at start: rotate it by giving the Redis user two passwords.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from forethought.errors import InvalidInput


def with_password(url: str, file: str) -> str:
    """``url`` with the password from ``file``; unchanged if it has one already or is not a Redis URL.

    Raises:
        InvalidInput: the file cannot be read or is not one line.
    """
    if not file or not url or url.startswith("memory://"):
        return url
    parts = urlsplit(url)
    if parts.password:
        return url
    user, _, host = parts.netloc.rpartition("@")
    secret = quote(_read(Path(file).expanduser()), safe="")
    return urlunsplit(parts._replace(netloc=f"{user.rstrip(':')}:{secret}@{host}"))


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InvalidInput(
            f"cannot read redis.password_file {path}: {reason}; expected a text file that this "
            "process may read"
        ) from error
    if not text.strip() or "\n" in text:
        got = f"{text.count(chr(10)) + 1} lines" if text.strip() else "no password"
        raise InvalidInput(f"redis.password_file {path} holds {got}; expected one line")
    return text
