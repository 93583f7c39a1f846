"""The files of a first run: the demo's model and corpus, and a commented configuration.

Design: the configuration is commented text rather than serialised settings, because users read and edit it.
The price is that it could drift from the demo's ``rlp`` arm; a test compares them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import Template

from forethought.lab.demo.arms import NUM_CORPUS_DOCUMENTS, NUM_HELDOUT_DOCUMENTS, base_model
from forethought.lab.demo.corpus import PLAIN, write_corpus

CONFIG = "run.toml"
"""The configuration's name in the folder; it is written last."""

_RUN = Template("""\
# A first run: the demo's reinforcement arm, on the small model and synthetic corpus next to this file.
#   forethought up $config                    everything, on one machine
#   python -m trainer --config $config        only the learner; replicas run elsewhere
# FORETHOUGHT_LEARNER_STEPS=10 in the environment, or learner.steps=10 on the command line, overrides
# this file. docs/configuration.md lists every setting.

[run]
name = "demo"              # replicas need the same name: FORETHOUGHT_RUN_NAME=demo
directory = "runs/demo"    # below the working directory, which in the images is /
seed = 0

[model]
path = "$model"
dtype = "float32"

[warmup]
when = "never"  # the model was trained with thoughts; "auto" for one that was not

[corpus]
path = "$corpus"
window_tokens = 32

[objective]
name = "rlp"
parameters = { positions = "marked" }  # think at the corpus's marks; "uniform": as published

[sampling]
group_size = 8             # thoughts per position
max_thought_tokens = 9     # thought budget, close token included

[learner]
steps = 120
batch_tasks = 32           # documents per step
learning_rate = 2e-4
max_staleness = 0          # strictly on-policy; 1 lets sampling and learning overlap

[checkpoint]
every_steps = 20

[rollout]                  # read by `up`; replicas elsewhere use their own environment
max_batch_tasks = 16

[reward]
max_batch_tasks = 32
""")


def parts(directory: Path) -> dict[str, Callable[[Path], None]]:
    """The contents of ``directory``, by name and in order: functions that write each to a path."""
    return {
        "model": _write_model,
        "corpus": _write_corpus,
        CONFIG: partial(_write_config, directory),
    }


def _write_model(path: Path) -> None:
    shutil.copytree(
        base_model(), path, copy_function=shutil.copyfile
    )  # without the original's owner and mode


def _write_corpus(path: Path) -> None:
    write_corpus(
        path,
        num_documents=NUM_CORPUS_DOCUMENTS,
        seed=0,
        mixture=PLAIN,
        num_heldout=NUM_HELDOUT_DOCUMENTS,
    )


def _write_config(directory: Path, path: Path) -> None:
    root = directory.resolve()
    names = {
        "config": root / CONFIG,
        "model": root / "model",
        "corpus": root / "corpus" / "train.jsonl",
    }
    path.write_text(_RUN.substitute(names), encoding="utf-8")
