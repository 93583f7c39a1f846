"""``forethought up`` as a process, with fakes for the processes it starts."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from forethought.cli.notices import Notices
from forethought.cli.supervisor import Program, RestartPolicy, Supervisor
from forethought.cli.up import judge
from forethought.run.directory import RunDirectory
from tests.repository import ROOT

PROCESSES = {
    "services/rollout/__main__.py": "fake_run.service('rollout')",
    "services/reward/__main__.py": "fake_run.service('reward')",
    "trainer/__main__.py": "fake_run.trainer()",
    "trainer/make_base.py": "fake_run.base()",
}


@dataclass
class Up:
    """A running ``up`` in its own folder."""

    folder: Path
    environment: dict[str, str]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *words: str, trainer: str = "train") -> subprocess.Popen[str]:
        command = (sys.executable, "-m", "forethought.cli", "up", "corpus.path=books", *words)
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | {"FAKE_TRAINER": trainer},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=listen_to_ctrl_c,
        )
        self.started.append(process)
        return process

    def output(self, process: subprocess.Popen[str]) -> str:
        return process.communicate(timeout=30)[0]

    def log(self, name: str) -> str:
        path = self.folder / "runs/default/logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    fakes = tmp_path / "fakes"
    for name, code in PROCESSES.items():
        path = fakes / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"import fake_run\n{code}\n")
    for package in ("services", "services/rollout", "services/reward", "trainer"):
        (fakes / package / "__init__.py").touch()
    (tmp_path / "books").mkdir()
    (tmp_path / "books/one.txt").write_text("a text")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FORETHOUGHT_")}
    here = str(ROOT / "tests")
    running = Up(tmp_path, clean | {"PYTHONPATH": f"{fakes}{os.pathsep}{here}"})
    yield running
    for process in running.started:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.communicate()


def listen_to_ctrl_c() -> None:
    """Tests started in the background may ignore SIGINT, and ``up`` would inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, "the condition did not come true in time"
        time.sleep(0.02)


def moment(log: str) -> float:
    """The time at which a fake process logged its end."""
    return float(log.split(" at ")[1])


def test_a_run_from_nothing_to_a_checkpoint(up: Up) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        process = up.start("learner.steps=200", "base.steps=7", "reward.http_port=0")
    finally:
        signal.signal(signal.SIGHUP, before)
    until(lambda: "redis" in up.log("trainer"))
    process.send_signal(signal.SIGHUP)  # a closed terminal: the run continues
    output = up.output(process)
    assert process.returncode == 0, output
    url = re.search(r"redis +(unix://\S+)", output)
    assert url, output
    assert f"forethought serve rollout --redis-url {url[1]} --run default" in output
    assert re.search(r"curl -s http://127\.0\.0\.1:\d+/v1/score", output)
    assert "/docs" in output
    assert "logs       runs/default/logs" in output
    assert "base 7/7" in output
    assert "rlp 200/200  reward 2.000" in output
    assert re.search(r"steps +200\n", output)
    assert 'from_pretrained("runs/default/checkpoints/step-000200/model")' in output
    assert "model runs/default/base/model redis unix://" in up.log("trainer")
    for name in ("rollout-1", "rollout-2", "reward-1"):
        assert moment(up.log(name)) > moment(up.log("trainer"))


def test_warnings_of_the_processes_and_what_was_read_are_said_once(up: Up) -> None:
    process = up.start("learner.steps=5000")
    services = ("rollout-1", "rollout-2", "reward-1")
    until(lambda: all("registered late" in up.log(name) for name in services))
    until(lambda: up.log("trainer").count("thoughts shrink") > 1)
    process.send_signal(signal.SIGINT)
    output = up.output(process)
    assert output.count("corpus     12 windows of 32 tokens: books 12\n") == 1
    assert output.count("precision  float32 (as configured)\n") == 1
    assert output.count("warning    trainer: step 1: thoughts shrink: floor them\n") == 1
    assert output.count("thoughts shrink") == 1, "the later ones differ only in their numbers"
    assert len(re.findall(r"warning    rollout-\d: registered late, \d+ ms\n", output)) == 1
    assert len(re.findall(r"warning    reward-1: registered late, \d+ ms\n", output)) == 1
    assert "something else" not in output


def test_ctrl_c_stops_in_order_and_the_same_command_resumes(up: Up) -> None:
    process = up.start("learner.steps=500")
    until(lambda: "drained" not in up.log("rollout-1") and "redis" in up.log("trainer"))
    process.send_signal(signal.SIGINT)
    output = up.output(process)
    assert process.returncode == 0, output
    assert "stopping: the learner writes a checkpoint" in output
    assert "run the same command again" in output
    steps = int(re.findall(r"steps +(\d+)\n", output)[0])
    assert 0 < steps < 500
    assert "stopped at" in up.log("trainer")

    output = up.output(up.start(f"learner.steps={steps + 3}"))
    assert re.search(rf"steps +{steps + 3}\n", output)
    assert up.log("base").count("base made") == 1


def test_a_second_ctrl_c_kills(up: Up) -> None:
    process = up.start("learner.steps=5000", trainer="deaf")
    until(lambda: "redis" in up.log("trainer"))
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    until(lambda: "stopping" in process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    output = up.output(process)
    assert process.returncode == 130, output
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_a_trainer_that_refuses_ends_the_run_with_its_message(up: Up) -> None:
    process = up.start(trainer="refuse")
    output = up.output(process)
    assert process.returncode == 2, output
    assert "error: trainer cannot run like this; the end of runs/default/logs/trainer.log" in output
    assert "got a cat, expected a dog; buy one" in output
    assert "Traceback" not in output


def test_a_run_that_learns_nothing_ends_with_its_reason_and_no_restart(up: Up) -> None:
    process = up.start("learner.steps=3", trainer="fail")
    output = up.output(process)
    assert process.returncode == 4, output
    assert "error: trainer stopped because nothing was learned; the end of runs/default" in output
    assert re.search(r"\nfailed +nothing was learned: no memory\n", output)
    assert re.search(r"\ncheckpoint +runs/default/checkpoints/step-000003\n", output)
    assert "to load it" not in output
    assert up.log("trainer").count("--- ") == 1, "it was started again"


def test_a_refused_rerun_leaves_the_run_as_it_was(up: Up) -> None:
    assert up.start("learner.steps=3").wait(30) == 0
    config = up.folder / "runs/default/up.toml"
    before = config.read_text()
    output = up.output(up.start("learner.steps=9", "objective.name=rpt", trainer="refuse"))
    assert "error: trainer cannot run like this" in output
    assert "to load it" not in output, "the checkpoint is not of this command"
    assert not re.search(r"\nsteps +3\n", output), "the summary is that of the run before"
    assert config.read_text() == before


def test_a_finished_run_says_so_and_starts_nothing(up: Up) -> None:
    assert up.start("learner.steps=3").wait(30) == 0
    logs = {name: up.log(name) for name in ("trainer", "rollout-1", "reward-1")}
    config = up.folder / "runs/default/up.toml"
    before = config.read_text()
    process = up.start("learner.steps=3", "objective.name=rpt")
    output = up.output(process)
    assert process.returncode == 0, output
    assert "the run in runs/default has finished at step 3: nothing is trained" in output
    assert 'from_pretrained("runs/default/checkpoints/step-000003/model")' in output
    assert not re.search(r"\nsteps +3\n", output), "the summary is that of the run before"
    assert config.read_text() == before
    assert logs == {name: up.log(name) for name in logs}


def test_a_run_directory_in_use_is_refused_before_anything_starts(up: Up) -> None:
    with RunDirectory(up.folder / "runs/default").owned():
        process = up.start()
        output = up.output(process)
    assert process.returncode == 2
    assert "owned by another learner" in output
    assert up.log("rollout-1") == ""


def test_only_the_logs_of_this_start_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    notices, log = Notices(said.append), tmp_path / "trainer.log"
    record = "14:03:59.120 trainer {} trainer.publisher: {}\n".format
    log.write_text(record("WARNING", "of an earlier start"))
    notices.watch("trainer", log)
    with log.open("a") as file:
        file.write(record("INFO", "not for the terminal") + record("ERROR", "lost 3 tasks"))
        file.write(
            "Traceback (most recent call last):\n" + record("WARNING", "half a line").strip()
        )
        file.flush()
        notices.read()
        assert said == ["error      trainer: lost 3 tasks"]
        file.write(", whole\n" + record("ERROR", "lost 4 tasks"))
        file.flush()
        notices.read()
    assert said[1:] == ["warning    trainer: half a line, whole"]


def test_what_was_read_is_said_once_whichever_process_read_it(tmp_path: Path) -> None:
    said: list[str] = []
    notices = Notices(said.append)
    for name in ("base", "trainer"):
        log, record = tmp_path / f"{name}.log", f"14:03:59.120 {name} {{}} {{}}: {{}}\n".format
        log.write_text("")
        notices.watch(name, log)
        log.write_text(
            record("INFO", "forethought.corpus.sources", "books: 7 documents of 2 files (2 text)")
            + record("WARNING", "forethought.corpus.sources", "books: left out 1 file: empty (a)")
            + record("WARNING", "trainer.publisher", "no replica")
        )
    notices.read()
    assert said == [
        "corpus     books: 7 documents of 2 files (2 text)",
        "warning    corpus: books: left out 1 file: empty (a)",
        "warning    base: no replica",
        "warning    trainer: no replica",
    ]


async def test_how_the_end_of_a_child_is_judged(
    tmp_path: Path,
) -> None:
    async with Supervisor(tmp_path, print, RestartPolicy(max_in_row=0)) as supervisor:
        superseded, broken, drained, other, reward = (
            supervisor.start(Program(name, (sys.executable, "-S", "-c", code)))
            for name, code in (
                ("trainer", "import sys; sys.exit(3)"),
                ("rollout-1", "import sys; sys.exit(7)"),
                ("rollout-2", ""),
                ("rollout-3", "import time; time.sleep(60)"),
                ("reward-1", "import time; time.sleep(60)"),
            )
        )
        await asyncio.wait([superseded.ended, broken.ended, drained.ended])
        assert judge(broken, needed=False, running=[other, reward]) is None
        assert judge(drained, needed=False, running=[reward]) is None
        last = judge(broken, needed=False, running=[reward])
        assert last is not None
        assert (last.exit_status, last.reason) == (1, "rollout-1 exited with status 7")
        newer = judge(superseded, needed=True, running=[other, reward])
        assert newer is not None
        assert (newer.exit_status, newer.reason[:15]) == (3, "a newer learner")
