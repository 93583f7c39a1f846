"""The layout of the run directory, defined only here: all code that reads or writes a run uses it.

    DIR/config.toml                 the resolved configuration of the last learner that trained here (no
                                    Redis URL, no tokens)
    DIR/up.toml  DIR/logs/          the configuration `forethought up` passes to its processes; their logs
    DIR/base/                       the small base model, if `up` had to train one
    DIR/warmup/                     the warm-up of the think markers: outcome.json, run/ and model/
    DIR/metrics.jsonl               one JSON object per optimizer step
    DIR/summary.json                the run's final summary, written when it ends
    DIR/checkpoints/step-000040/    model/ loads with transformers; the rest resumes the learner
    DIR/journal/                    every consumed batch
    DIR/cache/                      the tokenised corpus; safe to delete
    DIR/epoch                       the newest epoch taken by a learner in this directory
    DIR/run-id                      drawn once: tells this run from every other, also of the same name
    DIR/lock                        held by the one learner that owns the run

A checkpoint directory gets its final name only once it is complete, so any directory with such a name can
be trusted.
"""

from __future__ import annotations

import fcntl
import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.errors import InvalidInput
from forethought.run.files import read_object, step_line, write_whole
from forethought.run.journal import newest_epoch_in

if TYPE_CHECKING:
    from forethought.config.sections import LearnerSection

log = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"^step-(\d{6,})$")
_RUN_ID = re.compile(rb"\s*([0-9a-f]{16})\s*")
_EPOCH = re.compile(rb"\s*(\d{1,18})\s*")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of a run.

    Example:
        ``RunDirectory(Path("runs/demo/rlp")).latest_checkpoint()``
    """

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.toml"

    @property
    def up_config(self) -> Path:
        """The configuration that `forethought up` passes to its processes."""
        return self.root / "up.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object per line and optimizer step."""
        return self.root / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """The run's final summary."""
        return self.root / "summary.json"

    @property
    def warmup(self) -> Path:
        """The folder of the run's warm-up: ``outcome.json``, ``run`` and ``model``."""
        return self.root / "warmup"

    def read_warmup(self) -> dict[str, Any]:
        """Whether a warm-up was needed, and what thoughts were worth; empty if that was not asked."""
        return read_object(self.warmup / "outcome.json")

    @property
    def journal(self) -> Path:
        """The folder of consumed batches."""
        return self.root / "journal"

    @property
    def cache(self) -> Path:
        """The tokenised corpus."""
        return self.root / "cache"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.root / "checkpoints"

    @property
    def is_begun(self) -> bool:
        """Whether a run has been started here."""
        begun_with = (self.up_config, self.config, self.cache)
        return (self.root / "lock").is_file() and any(path.exists() for path in begun_with)

    def newest_epoch(self) -> int:
        """The newest epoch recorded in this directory, or 0. Redis may have lost it.

        A file damaged by a power cut is replaced by the journal's epochs, and one more: an epoch that was
        taken and has consumed nothing is in no journal.
        """
        path = self.root / "epoch"
        if not path.exists():
            return 0
        if found := _EPOCH.fullmatch(path.read_bytes()):
            return int(found[1])
        newest = newest_epoch_in(self.journal) + 1
        log.warning(
            "%s holds no epoch (a power cut leaves such a file); the journal shows that it was at "
            "most %d, which is used instead",
            path,
            newest,
        )
        return newest

    def note_epoch(self, epoch: int) -> None:
        """Record an epoch, so that no later learner takes it again."""
        write_whole(self.root / "epoch", f"{epoch}\n")

    def run_id(self, in_checkpoint: str = "") -> str:
        """The run's id, drawn at the first call; ``in_checkpoint`` if its file is lost or damaged."""
        path = self.root / "run-id"
        found = _RUN_ID.fullmatch(path.read_bytes()) if path.exists() else None
        if found:
            return found[1].decode()
        run_id = in_checkpoint or secrets.token_hex(8)
        self.root.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{run_id}\n")
        return run_id

    def checkpoint(self, step: int) -> Path:
        """The directory of the checkpoint after ``step``."""
        return self.checkpoints / f"step-{step:06d}"

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the run's final summary."""
        write_whole(self.summary, json.dumps(summary, indent=2) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """The run's final summary; empty if there is none, or a damaged one."""
        return read_object(self.summary)

    def finished_note(self, learner: LearnerSection) -> str:
        """A sentence if the run is finished and such a learner would train nothing; else empty.

        A learner that stays has work left: replicas that join need its weights.
        """
        summary = self.read_summary()
        step = int(summary.get("steps", 0))
        is_whole = summary.get("done") is True and self.latest_checkpoint() == self.checkpoint(step)
        if learner.stay or not is_whole or not learner.is_done(step, int(summary.get("tokens", 0))):
            return ""
        return (
            f"the run in {self.root} has finished at step {step}: nothing is trained, and settings that "
            "differ from its config.toml are not used; raise learner.steps to go on, or choose another "
            "run.directory"
        )

    def complete_checkpoints(self) -> list[Path]:
        """Every complete checkpoint, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        found = [entry for entry in self.checkpoints.iterdir() if _CHECKPOINT.match(entry.name)]
        return sorted(found, key=lambda entry: int(entry.name.removeprefix("step-")))

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        found = self.complete_checkpoints()
        return found[-1] if found else None

    def model(self) -> Path:
        """The transformers directory of the newest checkpoint.

        Raises:
            InvalidInput: there is no checkpoint yet.
        """
        latest = self.latest_checkpoint()
        if latest is None:
            raise InvalidInput(f"{self.root} holds no checkpoint yet; let the run reach one")
        return latest / "model"

    def read_metrics(self) -> list[dict[str, Any]]:
        """All intact metrics lines; a line still being written and damaged ones are skipped."""
        return [step for step in self._metrics_lines() if step is not None]

    def num_damaged_metrics(self) -> int:
        """The number of metrics lines that hold no step, as a power cut leaves them."""
        return sum(step is None for step in self._metrics_lines())

    def _metrics_lines(self) -> list[dict[str, Any] | None]:
        if not self.metrics.exists():
            return []
        return [step_line(line) for line in self.metrics.read_bytes().split(b"\n")[:-1]]

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the run's lock inside the context; it is released if the process dies.

        What a killed owner did not finish writing is removed.

        Raises:
            InvalidInput: another learner holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InvalidInput(
                    f"run directory {self.root} is owned by another learner that is still alive; "
                    "stop it, or set a different run.directory"
                ) from error
            self._remove_partial()
            yield

    def _remove_partial(self) -> None:
        """Remove files and folders that never got their final name; a checkpoint is as large as any."""
        for folder in (self.root, self.checkpoints):
            for partial in folder.glob("*.partial"):
                if partial.is_dir() and not partial.is_symlink():
                    shutil.rmtree(partial, ignore_errors=True)
                else:
                    partial.unlink(missing_ok=True)
