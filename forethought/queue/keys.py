"""Every Redis key of a run, named in this one file.

Design: all keys of a run share the prefix ``forethought:{RUN}:``. The braces are a Redis hash
tag, so a run lives in one slot and its scripts also work on a cluster; runs never see each other.
The price is that one run cannot be spread over several cluster nodes, which its traffic does not
require.

    key                  type     holds
    tasks                stream   tasks waiting for or leased to rollout replicas
    rollouts             stream   rollouts waiting for or leased to reward replicas
    scored               stream   scored rollouts on their way to the learner
    attempts:<stage>     hash     entry id -> attempts begun, for the entries of that stage
    dead                 stream   dead letters, the newest ``MAX_DEAD_LETTERS``
    epoch                string   the newest epoch taken by a learner
    watermark            hash     epoch and task_id of the oldest open task
    life                 string   instance id: random, set once, and lost with the data
    run                  string   the run manifest, JSON
    replicas             hash     replica id -> registration, JSON
    replicas:expiry      zset     replica id -> expiry, milliseconds of Redis's own clock
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from forethought.errors import InvalidInput
from forethought.queue.interface import Stage

GROUP = "workers"
"""The one consumer group of every stage's stream; autoscalers (KEDA) are configured with it too."""

MAX_DEAD_LETTERS = 100
"""Dead letters kept per run: at most 100 MiB, yet enough to see a pattern."""

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one run.

    Example:
        ``Keys("rlp-qwen").stream(Stage.TASKS)`` is ``"forethought:{rlp-qwen}:tasks"``

    Raises:
        InvalidInput: the run's name would be ambiguous in a key.
    """

    run_name: str

    def __post_init__(self) -> None:
        if not _RUN_NAME.fullmatch(self.run_name):
            raise InvalidInput(
                f"run name is {self.run_name!r}; expected 1 to 64 letters, digits, '.', '_' or "
                "'-', beginning with a letter or digit; rename the run"
            )

    def stream(self, stage: Stage) -> str:
        """The stream of a stage."""
        return self._key(stage.value)

    def attempts(self, stage: Stage) -> str:
        """The attempts begun on entries of a stage."""
        return self._key(f"attempts:{stage.value}")

    @property
    def dead_letters(self) -> str:
        """The dead letters of all stages."""
        return self._key("dead")

    @property
    def epoch(self) -> str:
        """The newest epoch."""
        return self._key("epoch")

    @property
    def watermark(self) -> str:
        """The oldest open task."""
        return self._key("watermark")

    @property
    def instance_id(self) -> str:
        """The instance id, which is lost with the data."""
        return self._key("life")

    @property
    def run(self) -> str:
        """The run manifest."""
        return self._key("run")

    @property
    def replicas(self) -> str:
        """The registered replicas."""
        return self._key("replicas")

    @property
    def replicas_expiry(self) -> str:
        """When each registration expires."""
        return self._key("replicas:expiry")

    def _key(self, name: str) -> str:
        return f"forethought:{{{self.run_name}}}:{name}"
