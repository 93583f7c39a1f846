"""Children started by ``multiprocessing`` exit when their parent is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

PARENT = """
import multiprocessing, threading, time
from forethought.orphan import end_with_parent

def child(following, started):
    if following:
        end_with_parent()
    started.set()
    time.sleep(60)

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    for following in (True, False):
        started = spawn.Event()
        process = spawn.Process(target=child, args=(following, started))
        threading.Thread(target=process.start).start()  # a thread that ends does not end the child
        started.wait()
        print(process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.e2e
def test_a_spawned_child_ends_with_its_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        following, other = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
        assert following.is_running()
        parent.kill()
        following.wait(timeout=20)
        assert other.is_running(), "only a child that asks for it ends"
        other.kill()
