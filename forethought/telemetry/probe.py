"""``python -m forethought.telemetry.probe``: probe the ops port of this container.

Design: containers are probed from inside, and the images have no curl. Only the standard library is
imported, because a probe runs every few seconds for the lifetime of the process. The price is one
interpreter start per probe, about fifty milliseconds.

Exit status: 0 if the page returned 200, 1 otherwise, with the reason on stderr.
"""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

DEFAULT_PORT = 9100
"""The ops port of every image."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and probe once; returns the exit status."""
    arguments = _parser().parse_args(argv)
    url = f"http://{arguments.host}:{arguments.port}{arguments.path}"
    fault = fault_of_url(url, arguments.timeout_s)
    if fault:
        print(f"probe: {url}: {fault}", file=sys.stderr)
    return 1 if fault else 0


def fault_of_url(url: str, timeout_s: float) -> str | None:
    """None if ``url`` returns 200 in time, else a description of the failure, with the body."""
    # No proxy: the environment's proxy settings do not apply to loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        body = error.read(1000).decode("utf-8", "replace").strip()
        return f"got status {error.code}, expected 200: {body}"
    except OSError as error:  # refused, reset or timed out
        return f"no answer ({error}); the process is starting, busy or dead"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m forethought.telemetry.probe",
        description="Probe an ops port; exit status 0 if it returns 200.",
        epilog="example: python -m forethought.telemetry.probe --path /healthz --port 9100",
    )
    parser.add_argument("--path", default="/readyz", help="page to request (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="host to probe (%(default)s)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="ops port (%(default)s)")
    parser.add_argument("--timeout-s", type=float, default=4.0, help="timeout (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
