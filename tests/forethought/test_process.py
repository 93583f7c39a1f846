"""How every process ends: the exit status, and what it writes to a closed pipe."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_standard_output_ends_without_a_traceback(unbuffered: str) -> None:
    """``--dry-run | head -1``: the reader left, whether the text is written at once or at the end."""
    code = (
        "import sys; from forethought.process import exit_status\n"
        "sys.exit(exit_status('trainer', lambda: print('one line') or 0))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(
        [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, env=environment
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_a_broken_connection_is_not_taken_for_a_closed_output() -> None:
    code = (
        "import sys; from forethought.process import exit_status\n"
        "def main(): raise BrokenPipeError('of a socket')\n"
        "sys.exit(exit_status('trainer', main))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "BrokenPipeError: of a socket" in ended.stderr


@pytest.mark.parametrize("main", ["forethought.process", "forethought.cli"])
def test_a_full_disk_is_a_line_not_a_traceback(main: str) -> None:
    """No restart makes space, so the status is that of an error of the user."""
    code = (
        "import forethought.cli, forethought.process, sys\n"
        "def write():\n"
        "    with open('/dev/full', 'w') as file: file.write('x')\n"
        "forethought.cli.app = lambda _: write()\n"
        f"if {main == 'forethought.cli'}: forethought.cli.main()\n"
        "sys.exit(forethought.process.exit_status('trainer', write))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "a file cannot be written: No space left on device; free some space" in line
