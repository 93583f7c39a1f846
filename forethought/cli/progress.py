"""The progress display of ``up``: a live block on a terminal, a line every two seconds elsewhere.

Design: everything shown comes from public sources, DIR/metrics.jsonl and the replica registry (and, for
:mod:`forethought.cli.notices`, the logs), so the
display cannot disturb the run or disagree with it. The price is polling the file a few times a second.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from forethought.lab.report.numbers import duration
from forethought.run.files import step_line

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

Metrics = dict[str, Any]

_PLAIN_INTERVAL_S = 2.0
_QUIET_S = 30.0  # warn after so long without a step: a silent hang is what users curse most
_PACE_STEPS = 20

_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("reward_mean", "reward", "{:.3f}".format),
    ("information_gain", "gain", "{:.3f} nats".format),
    ("nll", "loss", "{:.3f} nats".format),
    ("thought_tokens_mean", "thought", "{:.1f} tokens".format),
    ("truncated_share", "truncated", "{:.0%}".format),
    ("closed_share", "closed", "{:.0%}".format),
    ("version", "version", "{:.0f}".format),
    ("lag_mean", "lag", "{:.2f}".format),
)


class LineTail:
    """Reads the lines appended to a file since the last call; an incomplete line is left."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[bytes]:
        """The new lines, without their ends."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            if self._path.stat().st_size < self._offset:  # a resume truncated the file
                self._offset = self._path.stat().st_size
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return whole.split(b"\n") if newline else []


class MetricsTail(LineTail):
    """The steps appended to ``metrics.jsonl``; damaged lines, which a resumed run drops, are skipped."""

    def read(self) -> list[Metrics]:
        """The new lines, parsed."""
        return [step for line in self.lines() if (step := step_line(line)) is not None]


@dataclass(slots=True)
class Reading:
    """The state of a stage: the latest metrics, the pace of the last steps, the registry.

    Example:
        ``Reading("rlp", 120)``
    """

    stage: str
    num_steps: int
    first_step: int = 0
    replicas: str = ""
    num_failed: int = 0
    changed_s: float = field(default_factory=time.monotonic)
    recent: deque[tuple[float, Metrics]] = field(default_factory=lambda: deque(maxlen=_PACE_STEPS))

    def add(self, lines: Sequence[Metrics]) -> None:
        """Add new metrics lines."""
        now = time.monotonic()
        self.recent.extend((float(line.get("time_unix_s", now)), line) for line in lines)
        self.num_failed += sum(int(line.get("tasks_failed") or 0) for line in lines)
        if lines:
            self.changed_s = now

    @property
    def latest(self) -> Metrics:
        """The latest metrics; empty before the first step."""
        return self.recent[-1][1] if self.recent else {}

    @property
    def step(self) -> int:
        """Steps finished."""
        return int(self.latest.get("step", self.first_step))

    @property
    def quiet_s(self) -> float:
        """Seconds since the last step, or since the stage began."""
        return time.monotonic() - self.changed_s

    def eta_s(self) -> float | None:
        """Estimated seconds to the end, at the pace of the last steps; None while unknown."""
        pace_s = self._mean_per_step()
        return None if pace_s is None else pace_s * max(0, self.num_steps - self.step)

    def tokens_per_s(self) -> float | None:
        """Trained tokens per second over the last steps; None while unknown."""
        if len(self.recent) < 2 or "tokens" not in self.latest:
            return None
        (first_s, first), (last_s, last) = self.recent[0], self.recent[-1]
        num_tokens = float(last["tokens"]) - float(first.get("tokens", 0))
        return num_tokens / (last_s - first_s) if last_s > first_s and num_tokens >= 0 else None

    def facts(self) -> list[tuple[str, str]]:
        """(name, value) pairs of all known values, in display order."""
        latest = self.latest
        known = [
            (label, render(float(latest[key])))
            for key, label, render in _SHOWN
            if latest.get(key) is not None
        ]
        speed, eta_s = self.tokens_per_s(), self.eta_s()
        if "tasks_failed" in latest:
            known.append(("failed", str(self.num_failed)))
        if self.replicas:
            known.append(("replicas", self.replicas))
        if speed is not None:
            known.append(("speed", f"{speed:,.0f} tokens/s"))
        if eta_s is not None:
            known.append(("left", duration(eta_s)))
        return known

    def warning(self) -> str:
        """A warning when no step has finished for long; empty otherwise."""
        if self.quiet_s < _QUIET_S:
            return ""
        what = "no step" if self.recent else "no first step"
        return f"{what} for {duration(self.quiet_s)}: see the logs, or forethought status"

    def _mean_per_step(self) -> float | None:
        if len(self.recent) < 2:
            return None
        elapsed_s = self.recent[-1][0] - self.recent[0][0]
        return elapsed_s / (len(self.recent) - 1) if elapsed_s > 0 else None


class Display(Protocol):
    """The sink of progress output. ``say`` may be called at any time."""

    def say(self, text: str) -> None:
        """Print a permanent line."""

    def show(self, reading: Reading) -> None:
        """Update the display."""

    def clear(self) -> None:
        """The stage is over: keep its last state on screen and stop the live display."""


class TerminalDisplay:
    """A bar and a block of values, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._shown = ""

    def say(self, text: str) -> None:
        """Print a line above the live block, unwrapped, so that commands can be copied."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def show(self, reading: Reading) -> None:
        """Redraw, if anything changed."""
        from rich.live import Live

        line = plain_line(reading)
        if self._live is not None and line == self._shown:
            return
        self._shown = line
        if self._live is None:
            # No refresh thread, because children are forked from this process.
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(_block(reading), refresh=True)

    def clear(self) -> None:
        """Stop redrawing."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class PlainDisplay:
    """Prints a line per interval in which a step finished, for logs and pipes."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self._print_line = print_line
        self._shown = ("", 0, "")
        self._last_s = 0.0

    def say(self, text: str) -> None:
        """Print a line."""
        self._print_line(text)

    def show(self, reading: Reading) -> None:
        """Print a line if there is news and the interval has passed."""
        now = time.monotonic()
        warning = reading.warning()
        state = (reading.stage, reading.step, "" if reading.recent else reading.replicas)
        interval_s = _QUIET_S if warning else _PLAIN_INTERVAL_S
        last_step = reading.step >= reading.num_steps
        if now - self._last_s < interval_s and not (last_step and state != self._shown):
            return
        if state == self._shown and not warning:
            return
        self._shown, self._last_s = state, now
        self._print_line(plain_line(reading))

    def clear(self) -> None:
        """Nothing to do: this display has no live block."""


def plain_line(reading: Reading) -> str:
    """A reading as one line.

    Example:
        ``"rlp 12/120  reward 0.310  gain 0.420 nats  thought 6.1 tokens  version 12  left 1m 30s"``
    """
    parts = [f"{reading.stage} {reading.step}/{reading.num_steps}"]
    parts += [f"{label} {value}" for label, value in reading.facts()]
    warning = reading.warning()
    return "  ".join([*parts, f"({warning})"] if warning else parts)


def _block(reading: Reading) -> Group:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=reading.num_steps, completed=reading.step, width=40)
    head.add_row(Text(reading.stage, "bold"), bar, f"{reading.step}/{reading.num_steps}")
    values = Text()
    for label, value in reading.facts():
        values.append(f"{label} ", "dim").append(f"{value.replace(' ', chr(0xA0))}   ")
    warning = reading.warning()
    return Group(head, values, *([Text(warning, "yellow")] if warning else []))
