"""Assemble a run: model, think markers, corpus and learner from the settings, all of it checked.

Design: every configuration error is found here, before Redis or a replica is touched.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from forethought.compute.model import Markers, read_model_files
from forethought.compute.policy import load_policy
from forethought.compute.prompting import end_ids
from forethought.config import Settings, write_resolved
from forethought.corpus.mixture import Corpus, open_corpus
from forethought.corpus.token_decoder import decoder_of
from forethought.objectives import Objective
from forethought.preflight import load_estimator
from forethought.run.directory import RunDirectory
from forethought.run.files import rename_whole
from forethought.special_tokens import special_tokens_of
from forethought.types import Prompting
from trainer.admission.feed import TaskFeed
from trainer.batch.builder import BatchBuilder
from trainer.learner.learner import Learner

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Assembly:
    """The parts of a run; ``settings`` name the type that ``model.dtype = auto`` has become.

    Example:
        ``assemble(settings, check_run(settings))``
    """

    settings: Settings
    directory: RunDirectory
    objective: Objective
    learner: Learner
    corpus: Corpus
    markers: Markers | None
    prompting: Prompting | None  # markers and prompting: None if the objective has no thoughts
    new_ids: tuple[int, ...] = ()  # of markers that the model did not have
    warmup: Mapping[str, Any] = field(
        default_factory=dict
    )  # its outcome; empty: none was considered

    @property
    def precision_line(self) -> str:
        """What the run computes in, and why; ``up`` prints it (:mod:`forethought.cli.notices`)."""
        precision = self.learner.language_model.precision
        kept = ", sums of gradients and master weights in float32"
        return f"precision: {precision}{kept if precision.dtype != 'float32' else ''}"

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The model's end-of-text tokens."""
        language_model = self.learner.language_model
        return end_ids(language_model.model, language_model.tokenizer)

    @property
    def bos_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts before every text."""
        return special_tokens_of(self.learner.language_model.tokenizer).bos_ids

    @property
    def unpredictable_ids(self) -> frozenset[int]:
        """The tokens that no prediction of the objective can be."""
        if not self.objective.prediction_tokens:
            return frozenset()
        return decoder_of(self.learner.language_model.tokenizer).unpredictable_ids(self.objective)

    def task_feed(self) -> TaskFeed:
        """A feed of the run's tasks; the objective has thoughts."""
        assert self.markers is not None
        assert self.prompting is not None
        return TaskFeed(
            self.corpus,
            self.objective,
            self.markers,
            self.prompting,
            self.settings,
            models_needed(self),
            self.end_ids,
            unpredictable_ids=self.unpredictable_ids,
        )

    def batch_builder(self) -> BatchBuilder:
        """A builder of the run's batches."""
        settings, objective = self.settings, self.objective
        estimator = load_estimator(settings, objective)
        return BatchBuilder(objective, estimator, settings.filter, settings.learner)

    def record_settings(self) -> None:
        """Write the resolved configuration of a run that has been accepted and has steps left.

        Not earlier: `eval` takes prompt and corpus from it, and a refused learner trained with neither.
        """
        config = self.directory.config
        partial = config.with_name(f"{config.name}.partial")
        write_resolved(self.settings, partial)
        rename_whole(partial, config)

    def model_files(self) -> dict[str, bytes]:
        """The policy's config and tokenizer files, as included in a snapshot."""
        language_model = self.learner.language_model
        with tempfile.TemporaryDirectory() as folder:
            language_model.model.config.save_pretrained(folder)
            language_model.model.generation_config.save_pretrained(folder)
            language_model.tokenizer.save_pretrained(folder)
            return read_model_files(folder)


def assemble(settings: Settings, objective: Objective) -> Assembly:
    """Build every part of a run whose settings and ``objective`` passed :mod:`forethought.preflight`.

    Raises:
        InvalidInput: the model or the corpus is unusable, or they do not fit together.
    """
    if settings.learner.num_threads:
        torch.set_num_threads(settings.learner.num_threads)
    torch.manual_seed(settings.run.seed)
    policy = load_policy(settings, objective)
    language_model = policy.language_model
    directory = RunDirectory(settings.run.directory)
    corpus = open_corpus(
        settings.corpus, language_model.tokenizer, settings.run.seed, directory.cache
    )
    log.info("corpus: %s", _what_was_read(corpus, settings.corpus.window_tokens))
    learner = Learner(language_model, settings.learner, settings.baseline)
    model = settings.model.model_copy(update={"dtype": language_model.precision.dtype})
    settings = settings.model_copy(update={"model": model})
    given = (policy.markers, policy.prompting, policy.new_ids)
    return Assembly(settings, directory, objective, learner, corpus, *given)


def _what_was_read(corpus: Corpus, window_tokens: int) -> str:
    """A line for people; ``up`` prints it (:mod:`forethought.cli.notices`)."""
    sources = (f"{name} {num:,}" for name, num in corpus.windows_per_source.items())
    return f"{corpus.num_windows:,} windows of {window_tokens} tokens: {', '.join(sources)}"


def models_needed(parts: Assembly) -> tuple[str, ...]:
    """The models whose likelihoods rewards and filters need. Without a baseline the policy scores both
    branches.
    """
    wanted = parts.objective.models
    if parts.settings.filter.min_logprob_std:
        wanted = wanted | {"policy"}
    if not parts.learner.baseline.exists:
        wanted = wanted - {"baseline"}
    return tuple(sorted(wanted))
