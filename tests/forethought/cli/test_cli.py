"""The command line: help, invalid input, status and doctor."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from forethought import __version__, cli
from forethought.cli import launch
from forethought.cli.doctor import Check, Level, configuration_checks, machine_checks, render
from forethought.cli.plan import ALLOCATOR, child_environment, prepare
from forethought.cli.progress import MetricsTail, Reading, plain_line
from forethought.errors import InvalidInput
from forethought.lab.report.numbers import duration
from forethought.queue import connect
from forethought.types import Replica
from tests import architectures, tiny
from tests.redis_server import administered_redis

COMMANDS = ("init", "up", "serve rollout", "serve reward", "train", "status", "doctor")
HEAVY = {"torch", "transformers", "vllm", "redis", "grpc", "datasets", "services", "trainer"}
NOWHERE = "redis://127.0.0.1:1/0"

Result = tuple[int, str, str]
Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command line in this process and an empty folder; (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run_words(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["forethought", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run_words


@pytest.fixture
def books(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "one.txt").write_text("a text")
    return folder


# Help


def test_help_imports_little() -> None:
    """413 modules, a third of a second; any library that is not for the terminal adds a hundred."""
    code = (
        "import sys; sys.argv = ['forethought', '--help']\n"
        "from forethought.cli import main\n"
        "try: main()\n"
        "finally: print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, _, modules = done.stdout.rpartition("MODULES")
    assert not HEAVY & {name.partition(".")[0] for name in modules.split()}
    assert all(word in shown for word in ("up", "serve", "train", "status", "doctor"))
    assert len(modules.split()) < 480


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(run: Run, command: str) -> None:
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert "Example" in out
    assert f"forethought {command} " in out


def test_version(run: Run) -> None:
    assert run("--version")[:2] == (0, f"forethought {__version__}\n")


# Invalid input


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("up", "no corpus"),
        ("up corpus.path=nowhere", "'nowhere' does not exist"),
        ("up missing.toml", "cannot read configuration missing.toml"),
        ("up books", "corpus.path=books"),
        ("up learner.stps=3", "did you mean 'steps'?"),
        ("up corpus.path=books model.path=nowhere", "model 'nowhere' does not exist here"),
        ("up corpus.path=books model.path=./nowhere", "'./nowhere' is not a directory"),
        ("up corpus.path=./boks", "corpus source 'boks' does not exist; expected a file"),
        ("up corpus.path=openai/gsm8k", "hf download openai/gsm8k --repo-type dataset"),
        ("up corpus.path=books corpus.split=test", "no file is of split 'test'"),
        ("up corpus.path=books corpus.template={question", "template '{question'"),
        ("up corpus.path=books corpus.strip_pattern=[", "strip_pattern '['"),
        ("up corpus.split=train", "corpus.split is given and corpus.path is not"),
        ("eval org/absent", "hf download org/absent`"),
        ("downstream org/absent --suite state-tracking", "hf download org/absent`"),
        ("curate org/text --model org/absent --out out", "model 'org/absent' does not exist here"),
        ("up corpus.path=books objective.name=nosuch", "no objective 'nosuch'"),
        ("up corpus.path=books sampling.group_size=1", "group_size is 1"),
        ("up corpus.path=books sampling.top_p=0.9", "sampling.top_p=0.9"),
        (f"up corpus.path=books redis.url={NOWHERE}", "cannot be used"),
        ("serve rollout rollout.engin=torch", "did you mean 'engine'?"),
        ("serve reward --config missing.toml", "cannot read configuration missing.toml"),
        ("train nonsense=1", "expected section.key=value"),
        ("train learner.steps=0", "learner.steps"),
        ("status", "no Redis URL"),
        (f"status --redis-url {NOWHERE}", "cannot be used"),
        ("status --redis-url nonsense", "expected redis://"),
        ("status --redis-url redis://x --json --watch", "expected one of them"),
    ],
)
def test_invalid_input_is_one_message_and_status_2(
    run: Run, books: Path, command: str, message: str
) -> None:
    status, out, err = run(*command.split())
    assert status == 2
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in out + err


def test_a_tilde_after_an_equals_sign_is_expanded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell expands it in ``--out ~/x`` but not in ``--out=~/x``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    status, _, err = run("serve", "reward", "--config=~/missing.toml")
    assert status == 2
    assert f"cannot read configuration {tmp_path}/missing.toml" in err


def test_an_invalid_command_line_starts_nothing(run: Run, tmp_path: Path) -> None:
    run("up", "learner.stps=3")
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_terminal_is_red() -> None:
    import pty

    main_end, child_end = pty.openpty()
    command = [sys.executable, "-m", "forethought.cli", "status"]
    with open(main_end, "rb", closefd=True) as terminal, open(child_end, "wb") as stderr:
        done = subprocess.run(command, stderr=stderr)
        assert terminal.read1().startswith(b"\x1b[31merror: ")  # type: ignore[attr-defined]
    assert done.returncode == 2


# serve and train replace their process


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []
    monkeypatch.setattr(launch.os, "execv", lambda path, words: calls.append(words[1:]))
    return calls


def test_serve_becomes_the_service(run: Run, became: list[list[str]]) -> None:
    run("serve", "rollout", "rollout.device=cpu", "--redis-url", "redis://h/0", "--run", "7")
    words = ["rollout.device=cpu", 'redis.url="redis://h/0"', 'run.name="7"']
    assert became == [["-P", "-m", "services.rollout", *words]]


def test_train_becomes_the_trainer(run: Run, became: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[learner]\nsteps = 3\n")
    run("train", "c.toml", "learner.steps=4", "--dry-run")
    run("train", "learner.steps=4")
    assert became == [
        ["-P", "-m", "trainer", "--config", "c.toml", "learner.steps=4", "--dry-run"],
        ["-P", "-m", "trainer", "learner.steps=4"],
    ]


# Planning a run


def test_a_default_run_directory_is_named_after_the_file(
    books: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text("[corpus]\npath = 'books'\n")
    named = prepare(Path("small.toml"), ())
    assert named.directory.root == Path("runs/small")
    chosen = prepare(Path("small.toml"), ("run.directory=elsewhere",))
    assert chosen.directory.root == Path("elsewhere")
    assert prepare(None, ("corpus.path=books",)).directory.root == Path("runs/default")


def test_fixed_ports_go_to_the_first_replica(
    books: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = prepare(None, ("corpus.path=books", "reward.replicas=2", "rollout.replicas=1"))
    commands = {program.name: program.command for program in plan.services("redis://h")}
    assert list(commands) == ["rollout-1", "reward-1", "reward-2"]
    assert not any("http_port" in word for word in commands["reward-1"])
    assert "reward.http_port=0" in commands["reward-2"]


def test_a_taken_port_is_refused_if_chosen_and_replaced_if_not(
    books: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"{port} on 127.0.0.1 is taken"):
            prepare(None, ("corpus.path=books", f"reward.http_port={port}"))
    plan = prepare(None, ("corpus.path=books", "reward.http_port=0"))
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d+", plan.reward_url or "")


def test_next_token_training_starts_no_replicas(
    books: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = prepare(None, ("corpus.path=books", "objective.name=ntp", "reward.http_port=0"))
    assert plan.services("redis://h") == []
    assert plan.reward_url is None
    assert "no replicas are started" in plan.notes[0]


def test_a_run_without_replicas_of_a_kind_notes_that_it_waits(
    books: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = prepare(None, ("corpus.path=books", "reward.replicas=0"))
    assert plan.notes == ("reward.replicas is 0: the run waits until one is started by hand",)


def test_children_do_not_inherit_settings_already_in_their_file() -> None:
    ours = {
        "FORETHOUGHT_LEARNER_STEPS": "3",
        "FORETHOUGHT_REDIS_URL": "redis://old",
        "PATH": "/bin",
    }
    secrets = {"REDIS_URL": "redis://new", "AUTH_TOKEN": "s3cret"}
    assert child_environment(ours, secrets) == {
        "FORETHOUGHT_REDIS_URL": "redis://new",
        "FORETHOUGHT_AUTH_TOKEN": "s3cret",
        "PATH": "/bin",
        "PYTHONUNBUFFERED": "1",
        **ALLOCATOR,
    }


def test_children_get_the_allocator_settings_of_whoever_starts_them() -> None:
    given = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    assert child_environment(given, {})["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"


# Progress


def test_the_tail_reads_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    tail = MetricsTail(path)
    assert tail.read() == []  # of an earlier start
    with path.open("a") as file:
        file.write('{"step": 2}\n{"ste')
        file.flush()
        assert tail.read() == [{"step": 2}]
        file.write('p": 3}\n')
    assert tail.read() == [{"step": 3}]
    path.write_text('{"step": 1}\n')  # truncated by a resumed trainer
    assert tail.read() == []


def test_a_reading_as_one_line() -> None:
    reading = Reading("rlp", 100, replicas="2 rollout + 1 reward")
    lines = [
        {"step": step, "time_unix_s": 10.0 + step, "tokens": 500 * step, "tasks_failed": 1}
        | {"reward_mean": 0.25, "truncated_share": 0.031, "information_gain": None, "version": step}
        for step in (4, 5, 6)
    ]
    reading.add(lines)
    assert plain_line(reading) == (
        "rlp 6/100  reward 0.250  truncated 3%  version 6  failed 3  "
        "replicas 2 rollout + 1 reward  speed 500 tokens/s  left 1m 34s"
    )


def test_a_stall_is_reported() -> None:
    reading = Reading("rlp", 100, changed_s=time.monotonic() - 90)
    assert plain_line(reading) == (
        "rlp 0/100  (no first step for 1m 30s: see the logs, or forethought status)"
    )


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3700)] == ["0s", "59s", "1m 1s", "1h 1m"]


# Status


def test_status_shows_epoch_replicas_and_lag(run: Run, redis_url: str) -> None:
    asyncio.run(_a_run_to_look_at(redis_url, "looked-at"))
    status, out, _ = run("status", "--redis-url", redis_url, "--run", "looked-at")
    assert status == 0
    assert "epoch 1   policy version 5" in out
    assert re.search(r"rollout-a.*policy 1\.3.*2", out)
    status, out, _ = run("status", "--redis-url", redis_url, "--run", "looked-at", "--json")
    report = json.loads(out)
    assert (report["epoch"], report["version"]) == (1, 5)
    assert [replica["lag"] for replica in report["replicas"]] == [2]
    assert report["streams"]["tasks"] == {"waiting": 0, "pending": 0}
    assert report["dead_letters"] == []


def test_status_names_quarantined_replicas(run: Run, redis_url: str) -> None:
    async def announce() -> None:
        broker = connect(redis_url, "made-new")
        await broker.new_epoch(1)
        reasons = {"unsound": "unsound does not compute what the learner computes"}
        await broker.set_run(1, {"run_id": "b" * 16, "version": 5, "quarantined": reasons})
        for name, run_id, epoch in (
            ("own", "b" * 16, 1), ("other", "a" * 16, 1), ("later", "b" * 16, 7), ("empty", "", 0),
            ("unsound", "b" * 16, 1),
        ):  # fmt: skip
            serving = {"policy": (epoch, 4), "baseline": (9, 9)} if run_id else {}
            replica = Replica(name, "rollout", "h:1", ("policy",), serving, run_id=run_id)
            await broker.announce(replica, ttl_s=60)
        await broker.close()

    asyncio.run(announce())
    words = ("status", "--redis-url", redis_url, "--run", "made-new")
    report = json.loads(run(*words, "--json")[1])
    states = {replica["id"]: (replica["state"], replica["lag"]) for replica in report["replicas"]}
    assert states == {
        "own": ("", 1), "other": ("quarantined", None), "later": ("quarantined", None),
        "empty": ("", None), "unsound": ("quarantined", None),
    }  # fmt: skip
    assert report["version"] == 5
    out = run(*words)[1]
    assert re.search(r"other .*quarantined", out)
    assert "\nunsound does not compute what the learner computes\n" in out
    assert "run_id: bbbbbbbbbbbbbbbb" in out


def test_status_of_an_unknown_run(run: Run, redis_url: str) -> None:
    status, _, err = run("status", "--redis-url", redis_url, "--run", "nosuch")
    assert status == 2
    assert "knows no run 'nosuch'" in err


def test_watching_an_unknown_run_says_so() -> None:
    from rich.console import Console

    from forethought.cli.status import render as render_status

    text = StringIO()
    report = {"run": "nosuch", "epoch": 0, "replicas": [], "manifest": None}
    Console(width=200, file=text).print(render_status(report))
    assert "knows no run 'nosuch'" in text.getvalue()


async def _a_run_to_look_at(url: str, name: str) -> None:
    broker = connect(url, name)
    await broker.new_epoch(1)
    await broker.set_run(1, {"objective": "rlp", "version": 5})
    await broker.announce(
        Replica("rollout-a", "rollout", "h:1", ("policy",), {"policy": (1, 3)}), 60
    )
    await broker.close()


# Doctor


def test_doctor_passes_on_a_machine_that_runs_these_tests(run: Run, books: Path) -> None:
    status, out, _ = run("doctor", "corpus.path=books", "reward.http_port=0")
    assert status == 0, out
    for name in ("python", "torch", "transformers", "gpu", "redis", "run directory", "corpus"):
        assert name in out
    assert "everything needed is available" in out


def test_doctor_reports_every_problem_with_a_remedy(tmp_path: Path) -> None:
    words = (f"redis.url={NOWHERE}", "corpus.path=nowhere", "model.path=nowhere")
    checks = list(configuration_checks(None, (*words, "run.directory=/proc/nowhere")))
    failed = {check.name: check for check in checks if check.level is Level.FAIL}
    assert {"redis", "corpus", "model"} <= set(failed)
    assert all(check.remedy for check in failed.values())


@pytest.mark.parametrize(
    ("name", "words", "level", "found"),
    [
        ("llama", (), Level.OK, "agree"),
        ("bamba", (), Level.WARN, "contexts are shared through a cache"),
        ("mamba", (), Level.WARN, "thoughts are sampled slowly"),
        (
            "rwkv",
            ("objective.name=ntp",),
            Level.WARN,
            "contexts are computed again for every thought",
        ),
        ("phi3", (), Level.FAIL, "change beyond 24"),
    ],
)
def test_doctor_says_how_a_models_passes_differ(
    name: str, words: tuple[str, ...], level: Level, found: str, tmp_path: Path
) -> None:
    directory = architectures.build_directory(tmp_path, name)
    sizes = ("corpus.window_tokens=24", "sampling.max_thought_tokens=8")
    checks = configuration_checks(None, (f"model.path={directory}", *sizes, *words))
    passes, precision = named(checks, "passes", "precision")
    assert passes.level is level
    assert found in passes.found
    assert precision.found.startswith("computes in float32 (")


def named(checks: Iterable[Check], *names: str) -> list[Check]:
    by_name = {check.name: check for check in checks}
    return [by_name[name] for name in names]


def test_doctor_names_weights_that_are_not_finite(tmp_path: Path) -> None:
    directory = tiny.corrupt(architectures.build_directory(tmp_path, "llama"))
    sizes = ("corpus.window_tokens=24", "sampling.max_thought_tokens=8")
    checks = configuration_checks(None, (f"model.path={directory}", *sizes))
    (passes,) = (check for check in checks if check.name == "passes")
    assert passes.level is Level.FAIL
    assert "lm_head.weight holds NaN" in passes.found


def test_doctor_exits_with_1_when_something_needed_is_missing(run: Run) -> None:
    status, out, _ = run("doctor", "corpus.path=nowhere")
    assert status == 1
    assert "1 to fix" in out


def test_doctor_compares_the_memory_of_redis_with_the_run(socket_dir: Path) -> None:
    with administered_redis(socket_dir, "--maxmemory", "1mb") as url:
        given = [f"redis.url={url}", "learner.batch_tasks=4096"]
        redis = next(check for check in configuration_checks(None, given) if check.name == "redis")
    assert redis.level is Level.FAIL
    assert "maxmemory is 1,048,576 bytes; this run may put" in redis.found


def test_doctor_stops_at_an_invalid_configuration() -> None:
    (check,) = configuration_checks(None, ("learner.stps=1",))
    assert check.level is Level.FAIL
    assert "did you mean" in check.found


def test_doctor_reports_how_to_install_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    versions = {"transformers": "4.40.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    checks = {check.name: check for check in machine_checks()}
    assert checks["torch"].found == "not installed"
    assert "pip install" in checks["torch"].remedy
    assert "needs 5.16" in checks["transformers"].found


def test_found_values_are_not_parsed_as_markup() -> None:
    table = render([Check("a", Level.FAIL, "[/nonsense]", 'pip install -e ".[local]"')])
    assert table.row_count == 1


def test_status_shows_names_and_addresses_whole_at_80_columns() -> None:
    """They are copied from the table to other commands; a narrow terminal folds them."""
    from rich.console import Console

    from forethought.cli.status import render as render_status

    replica: dict[str, Any] = {
        "id": "rollout-a-machine-of-a-long-name-3fa9b2",
        "kind": "rollout",
        "lag": 0,
    }
    replica |= {"address": "10.100.200.5:50051", "tasks_done": 12345, "state": "draining"}
    replica |= {"serving": {model: {"epoch": 1, "version": 40} for model in ("policy", "baseline")}}
    report = {"run": "r", "epoch": 1, "version": 40, "replicas": [replica], "streams": {}}
    text = StringIO()
    Console(width=80, file=text).print(
        render_status(report | {"manifest": None, "dead_letters": []})
    )
    rows = [line.split("│")[1:-1] for line in text.getvalue().splitlines() if "│" in line]
    columns = ["".join(cell.strip() for cell in column) for column in zip(*rows, strict=True)]
    assert columns[:3] == [replica["id"], "rollout", "10.100.200.5:50051"]
