"""``forethought status``: the state of a run as recorded in Redis.

Design: it reads only Redis, so that it works from any machine that reaches Redis and never queries a busy
process. The price: the latest version shown is the latest that any replica serves (or the run's manifest
names), which lags the learner's own while a push is in flight.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import typer

from forethought.errors import InvalidInput, Unreachable

if TYPE_CHECKING:
    from rich.console import Console, Group

    from forethought.queue import Broker
    from forethought.types import Replica

_WATCH_INTERVAL_S = 1.0
_ANSWER_TIMEOUT_S = 15.0

Report = dict[str, Any]


def status(
    redis_url: str = typer.Option(
        "", "--redis-url", metavar="URL", envvar="FORETHOUGHT_REDIS_URL", help="The run's Redis."
    ),
    password_file: str = typer.Option(
        "",
        "--redis-password-file",
        metavar="FILE",
        envvar="FORETHOUGHT_REDIS_PASSWORD_FILE",
        help="A file with the password for a URL without one.",
    ),
    run: str = typer.Option(
        "default", "--run", metavar="NAME", envvar="FORETHOUGHT_RUN_NAME", help="The run's name."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object, for scripts."),
    watch: bool = typer.Option(False, "--watch", help="Refresh every second until Ctrl-C."),
) -> None:
    """Show a run: epoch and version, replicas and their lag, queue depths, dead letters."""
    if not redis_url:
        raise InvalidInput(
            "no Redis URL; expected --redis-url redis://HOST:PORT/0 or FORETHOUGHT_REDIS_URL "
            "(forethought up prints it at startup)"
        )
    if as_json and watch:
        raise InvalidInput("got --json and --watch; expected one of them")
    from forethought.config.redis_password import with_password

    url = with_password(redis_url, password_file)
    with suppress(KeyboardInterrupt):  # Ctrl-C ends --watch
        asyncio.run(_status(url, run, as_json, watch))


async def _status(redis_url: str, run: str, as_json: bool, watch: bool) -> None:
    from rich.console import Console

    from forethought.queue import connect

    broker = connect(redis_url, run)
    try:
        if watch:
            await _watch(broker, run, Console())
            return
        report = await gather_report(broker, run)
    finally:
        await broker.close()
    if as_json:
        print(json.dumps(report))
        return
    if not _is_known(report):
        raise InvalidInput(_unknown(run))
    Console().print(render(report))


async def _watch(broker: Broker, run: str, console: Console) -> None:
    from rich.live import Live

    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            live.update(render(await gather_report(broker, run)), refresh=True)
            await asyncio.sleep(
                _WATCH_INTERVAL_S
            )  # a clock: Redis offers no event to wait for here


def _is_known(report: Report) -> bool:
    return bool(report["epoch"] or report["replicas"] or report["manifest"])


def _unknown(run: str) -> str:
    return (
        f"this Redis knows no run {run!r}; expected the name the run was started with "
        "(run.name); or the run has not started yet"
    )


async def gather_report(broker: Broker, run: str) -> Report:
    """The report that ``--json`` prints.

    Raises:
        Unreachable: Redis does not answer.
    """
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            manifest = await broker.run()
            replicas = await broker.replicas()
            epoch = await broker.current_epoch()
            depths = await broker.depths()
            letters = await broker.dead_letters()
    except TimeoutError as error:
        raise Unreachable(
            f"Redis did not answer within {_ANSWER_TIMEOUT_S:.0f} s; check that it is not overloaded"
        ) from error
    newest = newest_version(replicas, manifest, epoch)
    return {
        "run": run,
        "epoch": epoch,
        "version": newest,
        "manifest": manifest,
        "replicas": [_replica(replica, manifest, epoch, newest) for replica in replicas],
        "streams": {
            stage.value: {"waiting": depth.waiting, "pending": depth.pending}
            for stage, depth in depths.items()
        },
        "dead_letters": [
            {"stage": x.stage.value, "task_id": x.message.task_id, "reason": x.reason}
            for x in letters
        ],
    }


def newest_version(
    replicas: list[Replica], manifest: dict[str, Any] | None, epoch: int
) -> int | None:
    """The latest policy version of this epoch in registry or manifest; None before the first."""
    served = [
        replica.serving["policy"]
        for replica in replicas
        if "policy" in replica.serving and not _is_of_another_run(replica, manifest)
    ]
    versions = [version for of_epoch, version in served if of_epoch == epoch]
    manifest = manifest or {}
    if manifest.get("epoch") == epoch and isinstance(manifest.get("version"), int):
        versions.append(manifest["version"])
    return max(versions, default=None)


def _is_of_another_run(replica: Replica, manifest: dict[str, Any] | None) -> bool:
    """Whether it serves weights of a run that this Redis does not belong to."""
    run_id = (manifest or {}).get("run_id", "")
    return bool(run_id) and "policy" in replica.serving and replica.run_id != run_id


def _quarantined(manifest: dict[str, Any] | None) -> dict[str, str]:
    """By id, why the learner takes nothing from a replica that it has compared with itself."""
    reasons: dict[str, str] = (manifest or {}).get("quarantined") or {}
    return reasons


def _state(replica: Replica, manifest: dict[str, Any] | None, epoch: int) -> str:
    """Empty for a replica in service."""
    if replica.draining:
        return "draining"
    of_epoch, _ = replica.serving.get("policy", (0, 0))
    is_foreign = _is_of_another_run(replica, manifest) or of_epoch > epoch
    if is_foreign or replica.replica_id in _quarantined(manifest):
        return "quarantined"
    return ""


def _replica(
    replica: Replica, manifest: dict[str, Any] | None, epoch: int, newest: int | None
) -> Report:
    of_epoch, version = replica.serving.get("policy", (0, None))
    state, lag = _state(replica, manifest, epoch), None
    if version is not None and newest is not None and of_epoch == epoch and not state:
        lag = newest - version
    return {
        "id": replica.replica_id,
        "kind": replica.kind,
        "address": replica.address,
        "serving": {
            model: {"epoch": pair[0], "version": pair[1]} for model, pair in replica.serving.items()
        },
        "lag": lag,
        "tasks_done": replica.num_tasks_done,
        "draining": replica.draining,
        "run_id": replica.run_id,
        "state": state,
    }


def render(report: Report) -> Group:
    """The report as tables."""
    from rich.console import Group
    from rich.text import Text

    if not _is_known(report):
        return Group(Text(_unknown(report["run"])))
    version = "none yet" if report["version"] is None else report["version"]
    head = Text(f"run {report['run']}   epoch {report['epoch']}   policy version {version}")
    parts: list[Any] = [head, _replica_table(report), _stream_table(report)]
    reasons = _quarantined(report["manifest"])
    parts += [Text(reason, style="red") for reason in reasons.values()]
    for key, value in (report["manifest"] or {}).items():
        if key == "quarantined":
            continue
        shown = value if isinstance(value, str) else json.dumps(value)
        parts.append(Text(f"{key}: {shown}", overflow="ellipsis", no_wrap=True, style="dim"))
    parts.append(Text(f"dead letters: {len(report['dead_letters'])}"))
    parts += [
        Text(f"  {letter['stage']} task {letter['task_id']}: {letter['reason']}", style="red")
        for letter in report["dead_letters"][-5:]
    ]
    return Group(*parts)


def _replica_table(report: Report) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title_justify="left")
    for heading in ("replica", "kind", "address", "serving", "lag", "done", ""):
        table.add_column(heading, overflow="fold")  # names and addresses must not be truncated
    for replica in report["replicas"]:
        serving = ", ".join(
            f"{model} {pair['epoch']}.{pair['version']}"
            for model, pair in replica["serving"].items()
        )
        lag = "-" if replica["lag"] is None else str(replica["lag"])
        cells = (replica["id"], replica["kind"], replica["address"], serving or "nothing yet")
        table.add_row(*map(escape, cells), lag, str(replica["tasks_done"]), replica["state"])
    return table if report["replicas"] else "no replicas"


def _stream_table(report: Report) -> Any:
    from rich.table import Table

    table = Table("stream", "waiting", "leased")
    for stage, depth in report["streams"].items():
        table.add_row(stage, str(depth["waiting"]), str(depth["pending"]))
    return table
