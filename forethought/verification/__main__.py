r"""``python -m forethought.verification TIMEOUT_S``: the process in which math-verify runs.

    reads   JSON lines ``[truth, answer]`` until end of input
    writes  one line when ready, then one line per input line: right, wrong, late or failed

Design: answers are untrusted model output, so the process limits itself: memory, time by the library's own
``SIGALRM``, and CPU time by a timer whose signal kills the process even if the parent is gone. Only the
LaTeX parser is used: the library's parser of plain expressions evaluates Python. The price: an answer is
parsed as if it were in ``\boxed{}``.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import signal
import sys

_MAX_MEMORY_BYTES = 4 << 30


def main(timeout_s: float) -> None:
    """Verify answers until end of input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then kills this
    logging.disable(logging.CRITICAL)  # the library logs every answer that it cannot parse
    if sys.platform.startswith("linux"):
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    import math_verify  # noqa: F401

    verdicts = sys.stdout
    sys.stdout = sys.stderr  # keeps the library's own output out of the verdicts
    print("ready", file=verdicts, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, 2 * timeout_s + 1)
        truth, answer = json.loads(line)
        print(_verdict(truth, answer, timeout_s), file=verdicts, flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _verdict(truth: str, answer: str, timeout_s: float) -> str:
    from math_verify import verify
    from math_verify.errors import TimeoutException

    whole_s = math.ceil(timeout_s)  # SIGALRM counts whole seconds
    try:
        gold, given = (_parsed(text, whole_s) for text in (truth, answer))
        is_right = verify(gold, given, timeout_seconds=whole_s, raise_on_error=True)
    except TimeoutException:
        return "late"
    except Exception:  # sympy may raise anything on arbitrary text
        return "failed"
    return "right" if is_right else "wrong"


def _parsed(text: str, timeout_s: int) -> list[object]:
    from math_verify import LatexExtractionConfig, parse

    boxed = text if "\\boxed" in text else f"\\boxed{{{text.strip().strip('$')}}}"
    found: list[object] = parse(
        boxed, (LatexExtractionConfig(),), parsing_timeout=timeout_s, raise_on_error=True
    )
    return found


if __name__ == "__main__":
    main(float(sys.argv[1]))
