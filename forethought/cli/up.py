"""``forethought up``: a whole run on one machine, from an empty folder to a checkpoint.

Design: one asyncio loop in one thread waits for the first of a child's exit, a signal, or the next poll
of the metrics. Nothing else decides when the run is over. The price is that a slow Redis delays a poll by
up to a second.

    loop     consumes               produces                waits for             unblocked by
    _follow  child exits, metrics,  progress, notices,      the first child exit  a child; Ctrl-C;
             logs, registry         the outcome             or Ctrl-C             ``_REFRESH_S``
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from forethought.cli.launch import CONFIG_ARGUMENT, OVERRIDES_ARGUMENT, split_config
from forethought.errors import ForethoughtError

if TYPE_CHECKING:
    from pathlib import Path

    from forethought.cli.plan import Plan
    from forethought.cli.progress import Display, MetricsTail, Reading
    from forethought.cli.supervisor import Child, Supervisor
    from forethought.queue import Broker, BrokerMemory
    from forethought.run.directory import RunDirectory

_REFRESH_S = 0.25
_REGISTRY_INTERVAL_S = 2.0
_REGISTRY_TIMEOUT_S = 1.0
_LEARNER_GRACE_S = 120.0  # it finishes its step and writes a checkpoint
_DRAIN_MARGIN_S = 5.0
_KILLED = 130


def up(
    config: str | None = CONFIG_ARGUMENT,
    overrides: list[str] | None = OVERRIDES_ARGUMENT,
) -> None:
    """Run everything on this machine: Redis, rollout and reward replicas, the learner.

    Without model.path, a small base model is trained on the corpus first. Ctrl-C shuts down cleanly
    and writes a checkpoint; the same command resumes from it. A second Ctrl-C kills.
    """
    from forethought.cli.plan import prepare

    sys.exit(run_here(prepare(*split_config(config, overrides))))


def run_here(plan: Plan) -> int:
    """Run a plan; returns the exit status."""
    from rich.console import Console

    from forethought.cli.progress import PlainDisplay, TerminalDisplay
    from forethought.cli.supervisor import REFUSED
    from forethought.config import write_resolved
    from forethought.run.files import write_whole

    console = Console()
    display: Display = (
        TerminalDisplay(console) if console.is_terminal else PlainDisplay(_print_line)
    )
    if note := plan.directory.finished_note(plan.settings.learner):
        return _finished(plan, display, note)
    config = plan.children_config
    earlier = config.read_text(encoding="utf-8") if config.exists() else None
    write_resolved(plan.settings, config)
    plan.logs.mkdir(parents=True, exist_ok=True)
    run = _Run(plan, display)
    status = asyncio.run(run.run())
    if status == REFUSED and run.fresh_summary() is None and earlier is not None:
        write_whole(config, earlier)  # a refused command leaves the run as it was
    return status


def _finished(plan: Plan, display: Display, note: str) -> int:
    from forethought.cli.summary import model_lines

    for line in (note, *model_lines(plan.directory)):
        display.say(line)
    return 0


def _print_line(text: str) -> None:
    print(text, flush=True)  # a pipe is read during the run


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a stage ended: exit status, message, and the child whose log has the details.

    Example:
        ``RunOutcome(2, "trainer refused to start", child)``
    """

    exit_status: int
    reason: str = ""
    culprit: Child | None = None
    stopped: bool = False


class _Run:
    """One execution of a plan."""

    def __init__(self, plan: Plan, display: Display) -> None:
        from forethought.cli.notices import Notices

        self._plan = plan
        self._redis_url = plan.settings.redis.url
        self._display = display
        self._notices = Notices(display.say)
        self._stop_requested = asyncio.Event()
        self._killed = False
        self._earlier_summary = _written_at(plan.directory.summary)

    async def run(self) -> int:
        """Run all processes from start to shutdown; returns the exit status."""
        from forethought.cli.supervisor import Supervisor
        from forethought.queue.embedded import EmbeddedRedis

        supervisor = Supervisor(self._plan.logs, self._display.say)
        self._listen(supervisor)  # before anything exists that a signal could orphan
        with EmbeddedRedis(url=self._redis_url or None, data_dir=self._plan.logs) as redis:
            self._redis_url = redis.url
            async with supervisor:
                outcome = await self._with_redis(supervisor)
        self._conclude(outcome)
        return _KILLED if self._killed else outcome.exit_status

    async def _with_redis(self, supervisor: Supervisor) -> RunOutcome:
        from forethought.queue import connect

        broker = connect(self._redis_url, self._plan.settings.run.name)
        try:
            # A configured Redis may be unreachable or too small: report it before anything starts.
            await broker.ping()
            self._check_memory(await broker.memory())
            self._announce()
            return await self._stages(supervisor, broker)
        finally:
            await broker.close()

    def _check_memory(self, memory: BrokerMemory) -> None:
        from forethought.preflight import check_memory, check_run

        check_memory(self._plan.settings, check_run(self._plan.settings), memory)

    async def _stages(self, supervisor: Supervisor, broker: Broker) -> RunOutcome:
        if self._plan.needs_base:
            outcome = await self._train_base(supervisor)
            if outcome.exit_status or outcome.stopped:
                return outcome
        services = [supervisor.start(program) for program in self._plan.services(self._redis_url)]
        trainer = supervisor.start(self._plan.trainer(self._redis_url))
        settings, directory = self._plan.settings, self._plan.directory
        stages = [
            _Stage.of("warm-up", settings.warmup.max_steps, self._plan.warmup_run),
            _Stage.of(settings.objective.name, settings.learner.steps, directory),
        ]
        registry = broker if self._plan.thinks else None
        outcome = await self._follow(trainer, services, stages, registry)
        await self._stop(supervisor, trainer, services)
        self._notices.read()  # of the end
        return outcome

    async def _train_base(self, supervisor: Supervisor) -> RunOutcome:
        self._display.say(
            f"no model.path: training a small base into {self._plan.base_model} first"
        )
        child = supervisor.start(self._plan.base_program(self._redis_url), restart=False)
        stage = _Stage.of("base", self._plan.settings.base.steps, self._plan.base_run)
        outcome = await self._follow(child, [], [stage], None)
        await child.stop(_LEARNER_GRACE_S)
        if not outcome.stopped and not outcome.exit_status and not self._plan.base_model.exists():
            return RunOutcome(1, f"base exited without writing {self._plan.base_model}", child)
        return outcome

    async def _follow(
        self,
        main: Child,
        others: Sequence[Child],
        stages: Sequence[_Stage],
        broker: Broker | None,
    ) -> RunOutcome:
        """Show progress until ``main`` is done, a child fails for good, or a stop is requested.

        ``main`` goes through ``stages`` in order and may leave out all but the last.
        """
        stopping = asyncio.create_task(self._stop_requested.wait())
        children = {child.ended: child for child in (main, *others)}
        for child in children.values():
            self._notices.watch(child.name, child.log)
        next_poll_s = 0.0
        try:
            while True:
                waited_for: set[asyncio.Task[Any]] = {stopping, *children}
                ended, _ = await asyncio.wait(
                    waited_for, timeout=_REFRESH_S, return_when=asyncio.FIRST_COMPLETED
                )
                if stopping in ended:
                    return RunOutcome(0, "stopped", stopped=True)
                self._notices.read()
                reading = _current(stages)
                if broker is not None and time.monotonic() >= next_poll_s:
                    reading.replicas = await _count_replicas(broker)
                    next_poll_s = time.monotonic() + _REGISTRY_INTERVAL_S
                self._display.show(reading)
                for child in [children.pop(task) for task in ended]:
                    outcome = judge(child, needed=child is main, running=children.values())
                    if outcome is not None:
                        return outcome
                    self._display.say(f"{child.name} has exited; the run continues without it")
        finally:
            stopping.cancel()
            self._display.clear()

    async def _stop(
        self, supervisor: Supervisor, trainer: Child, services: Sequence[Child]
    ) -> None:
        """Stop the learner before the services it needs; Redis stops last, when its context exits."""
        settings = self._plan.settings
        await supervisor.stop([trainer], _LEARNER_GRACE_S)
        drain_s = max(settings.rollout.drain_s, settings.reward.drain_s)
        await supervisor.stop(services, drain_s + _DRAIN_MARGIN_S)

    def _listen(self, supervisor: Supervisor) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_IGN:  # nohup, or a shell's background job
                continue
            loop.add_signal_handler(number, self._on_signal, supervisor)

    def _on_signal(self, supervisor: Supervisor) -> None:
        if self._stop_requested.is_set():
            self._killed = True
            self._display.say("killing the remaining processes")
            supervisor.kill()
            return
        self._stop_requested.set()
        self._display.clear()
        self._display.say(
            "stopping: the learner writes a checkpoint, then the services drain "
            "(Ctrl-C again kills)"
        )

    def _announce(self) -> None:
        from forethought.cli.summary import opening_lines

        for line in opening_lines(self._plan, self._redis_url):
            self._display.say(line)

    def _conclude(self, outcome: RunOutcome) -> None:
        from forethought.cli.summary import closing_lines
        from forethought.cli.supervisor import REFUSED

        if outcome.culprit is not None:
            error = f"error: {outcome.reason}; the end of {outcome.culprit.log}:"
            typer.secho(error, fg=typer.colors.RED, err=True)
            typer.echo(outcome.culprit.last_lines(), err=True)
        summary = self.fresh_summary()
        if outcome.exit_status == REFUSED and summary is None:
            return  # what the directory holds is not of this command
        failed = outcome.exit_status != 0
        for line in closing_lines(self._plan.directory, summary, outcome.stopped, failed):
            self._display.say(line)

    def fresh_summary(self) -> dict[str, object] | None:
        """The summary, if the learner wrote it in this run and not in an earlier one."""
        if _written_at(self._plan.directory.summary) == self._earlier_summary:
            return None
        return self._plan.directory.read_summary()


def _written_at(path: Path) -> int | None:
    """The time of a file's last write in ns; None without a file."""
    return path.stat().st_mtime_ns if path.exists() else None


@dataclass(frozen=True, slots=True)
class _Stage:
    """A run of the learner: its state, and the end of its metrics.

    Example:
        ``_Stage.of("rlp", 120, directory)``
    """

    reading: Reading
    tail: MetricsTail

    @classmethod
    def of(cls, name: str, num_steps: int, directory: RunDirectory) -> _Stage:
        """The state before the process starts; a resumed stage does not begin at 0."""
        from forethought.cli.progress import MetricsTail, Reading

        latest = directory.latest_checkpoint()
        first_step = int(latest.name.removeprefix("step-")) if latest else 0
        return cls(Reading(name, num_steps, first_step), MetricsTail(directory.metrics))


def _current(stages: Sequence[_Stage]) -> Reading:
    """The stage that has made the newest step; before any, the last."""
    for stage in stages:
        stage.reading.add(stage.tail.read())
    begun = [stage.reading for stage in stages if stage.reading.recent]
    return begun[-1] if begun else stages[-1].reading


def judge(child: Child, *, needed: bool, running: Iterable[Child]) -> RunOutcome | None:
    """The outcome of the run after a child's exit; None: the run continues without it.

    Exit 0 of a replica is a finished drain; a replica that keeps failing ends the run only if it was the
    last of its kind.
    """
    from forethought.cli.supervisor import (
        DONE,
        NOTHING_LEARNED,
        REFUSED,
        SUPERSEDED,
        describe_exit,
    )

    status = child.ended.result()
    if status == DONE:
        return RunOutcome(0) if needed else None
    if status == REFUSED:
        return RunOutcome(REFUSED, f"{child.name} cannot run like this", child)
    if status == SUPERSEDED:
        return RunOutcome(SUPERSEDED, "a newer learner has taken over this run", child)
    if status == NOTHING_LEARNED:
        return RunOutcome(
            NOTHING_LEARNED, f"{child.name} stopped because nothing was learned", child
        )
    if not needed and any(_kind(other) == _kind(child) for other in running):
        return None
    return RunOutcome(1, f"{child.name} {describe_exit(status)}", child)


def _kind(child: Child) -> str:
    return child.name.rpartition("-")[0]


async def _count_replicas(broker: Broker) -> str:
    """``"2 rollout + 1 reward"``, or why the count is unknown."""
    try:
        async with asyncio.timeout(_REGISTRY_TIMEOUT_S):
            kinds = Counter(replica.kind for replica in await broker.replicas())
    except (ForethoughtError, TimeoutError):
        return "unknown, Redis does not answer"
    order = sorted(kinds, reverse=True)
    return " + ".join(f"{kinds[kind]} {kind}" for kind in order) or "none yet"
