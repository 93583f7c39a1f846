"""The arms of the demo and their settings.

    rlp          RLP at the answers, which the corpus marks     120 steps
    rlp_uniform  RLP as published: one uniformly random position per document, 160 steps
    cpt          next-token loss on the same corpus, as many tokens as `rlp` sampled and trained on

Design: arms are overrides of the defaults rather than files, so that the demo runs from an installed
wheel and the differences between arms are visible side by side. The price is that an arm is not a file to
copy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from forethought.lab.demo.corpus import PLAIN, write_corpus

NUM_CORPUS_DOCUMENTS = 20_000
NUM_HELDOUT_DOCUMENTS = 512
WINDOW_TOKENS = 32
GROUP_SIZE = 8
MAX_THOUGHT_TOKENS = 9
_DOCUMENT_TOKENS = 12  # trained per document: thirteen, minus the first, which is never predicted
_CPT_DOCUMENTS = 256


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """The folder of the demo and its options.

    Example:
        ``DemoPlan(Path("runs/demo"), engine="torch", num_replicas=2, seed=0)``
    """

    directory: Path
    engine: str = "torch"
    num_replicas: int = 2
    seed: int = 0

    @property
    def corpus(self) -> Path:
        """The folder with ``train.jsonl`` and ``heldout.jsonl``."""
        return self.directory / "corpus"

    def arm_directory(self, arm: str) -> Path:
        """The run directory of an arm."""
        return self.directory / arm

    def write_corpus(self) -> None:
        """Write the plain documents on which all arms are trained and measured."""
        write_corpus(
            self.corpus,
            num_documents=NUM_CORPUS_DOCUMENTS,
            seed=self.seed,
            mixture=PLAIN,
            num_heldout=NUM_HELDOUT_DOCUMENTS,
        )

    def rlp(self, arm: str, positions: str, steps: int) -> list[str]:
        """Overrides of a reinforcement arm: 32 documents x 8 thoughts per step, strictly on-policy."""
        return [
            *self._common(arm),
            "objective.name=rlp",
            f"objective.parameters={{positions = '{positions}'}}",
            f"sampling.group_size={GROUP_SIZE}",
            f"sampling.max_thought_tokens={MAX_THOUGHT_TOKENS}",
            f"learner.steps={steps}",
            "learner.batch_tasks=32",
            "learner.learning_rate=2e-4",
            f"rollout.engine={self.engine}",
            f"rollout.replicas={self.num_replicas}",
            "rollout.max_batch_tasks=16",
            "reward.max_batch_tasks=32",
            "reward.http_port=0",
        ]

    def cpt(self, num_tokens: int) -> list[str]:
        """Overrides of continued pre-training on ``num_tokens`` tokens."""
        steps = math.ceil(num_tokens / (_CPT_DOCUMENTS * _DOCUMENT_TOKENS))
        return [
            *self._common("cpt"),
            "objective.name=ntp",
            f"learner.steps={steps}",
            f"learner.batch_tasks={_CPT_DOCUMENTS}",
            "learner.learning_rate=1e-4",
            "checkpoint.every_steps=1000",
        ]

    def _common(self, arm: str) -> list[str]:
        return [
            f"run.name=demo-{arm.replace('_', '-')}",
            f"run.directory={self.arm_directory(arm)}",
            f"run.seed={self.seed}",
            f"model.path={base_model()}",
            "model.dtype=float32",  # the figures of a demo are to be those of any machine
            "warmup.when=never",  # the base was trained with thoughts
            f"corpus.path={self.corpus / 'train.jsonl'}",
            f"corpus.window_tokens={WINDOW_TOKENS}",
        ]


def base_model() -> Path:
    """The directory of the base model that ships with the package."""
    return Path(str(resources.files("forethought.lab.demo") / "base"))


def matched_tokens(summary: dict[str, Any]) -> int:
    """Tokens that a reinforcement arm processed: each row once for sampling and once for training."""
    return 2 * int(summary["tokens"])
