"""``python -m forethought.telemetry.probe``: fault_of_url the ops port of this very container how it is.

Design: containers are probed from inside, and images have no curl. Only the standard library is
imported, because a probe runs every few seconds for as long as the process lives. The price is one
start of an interpreter each time, some fifty milliseconds.

Exit statuses: 0 the page was answered with 200, 1 anything else; what was wrong stands on stderr.
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
    """Parse the command line and ask once; returns the exit status."""
    arguments = _parser().parse_args(argv)
    url = f"http://{arguments.host}:{arguments.port}{arguments.path}"
    fault = fault_of_url(url, arguments.timeout_s)
    if fault:
        print(f"probe: {url}: {fault}", file=sys.stderr)
    return 1 if fault else 0


def fault_of_url(url: str, timeout_s: float) -> str | None:
    """None when ``url`` is answered with 200 in time, else what happened, body included."""
    # No proxy: what the environment says about the way out has nothing to do with loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        body = error.read(1000).decode("utf-8", "replace").strip()
        return f"got status {error.code}, expected 200: {body}"
    except OSError as error:  # refused, reset or timed out
        return f"no answer ({error}); the process is starting, busy or gone"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m forethought.telemetry.probe",
        description="Ask an ops port; exit status 0 if it answers 200.",
        epilog="example: python -m forethought.telemetry.probe --path /healthz --port 9100",
    )
    parser.add_argument("--path", default="/readyz", help="page to ask for (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="whom to ask (%(default)s)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="its port (%(default)s)")
    parser.add_argument("--timeout-s", type=float, default=4.0, help="seconds (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
