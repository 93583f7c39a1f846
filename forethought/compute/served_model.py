"""A model that serves while newer weights arrive, as used in rollout and reward replicas.

Design: one lock, held for a whole batch of work or for a flip, so that flips happen between batches and
everything computed in a batch is of one version. The price is that a flip waits for the current batch, but
for no other: a second lock, held while waiting for the first, keeps the order of those who wait. An
engine that switches inside a running request tracks its own version boundary instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from forethought.compute.model import LanguageModel, load_language_model
from forethought.compute.weights import apply_weights
from forethought.errors import InvalidInput, NotReady
from forethought.types import WeightManifest


@dataclass(frozen=True, slots=True)
class Serving:
    """The model being served. Its weights change only under the lock.

    Example:
        ``with served.hold() as serving: sample(serving.language_model.model, requests)``
    """

    language_model: LanguageModel
    manifest: WeightManifest


class ServedModel:
    """Weights of one published model ("policy" or "baseline") and their version."""

    def __init__(
        self, name: str, device: str, fault: Callable[[LanguageModel], str | None] | None = None
    ) -> None:
        """``fault`` says why a model that loads cannot be served, or None."""
        self.name = name
        self._device = device
        self._fault = fault
        self._lock, self._next = threading.Lock(), threading.Lock()
        self._serving: Serving | None = None

    @property
    def manifest(self) -> WeightManifest | None:
        """The manifest of the weights served, or None before the first weights."""
        return self._serving.manifest if self._serving else None

    @property
    def is_ready(self) -> bool:
        """True once a verified version is served."""
        return self._serving is not None

    @property
    def now(self) -> Serving:
        """What is served at this moment, without waiting for the current batch.

        Use it for the tokenizer and the size; computation with the weights must be under :meth:`hold`.

        Raises:
            NotReady: no weights have arrived yet.
        """
        serving = self._serving
        if serving is None:
            raise NotReady(f"no {self.name} weights yet; the learner has to publish first")
        return serving

    @contextmanager
    def hold(self) -> Iterator[Serving]:
        """Keep the version fixed for the duration of a batch.

        Raises:
            NotReady: no weights have arrived yet.
        """
        with self._turn():
            yield self.now

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._next:
            self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()

    def load(self, directory: Path, manifest: WeightManifest) -> None:
        """Flip to the verified snapshot in ``directory``. Blocking: call it off the event loop.

        If the model files are unchanged, only weights are copied; otherwise the model is loaded again and
        swapped in.

        Raises:
            InvalidInput: the snapshot does not load or does not fit; the old version keeps serving.
        """
        current = self._serving
        if current and current.manifest.model_files_sha256 == manifest.model_files_sha256:
            with self._turn():
                apply_weights(current.language_model.model, directory / "model.safetensors")
                self._serving = Serving(current.language_model, manifest)
            return
        fresh = load_language_model(directory, manifest.dtype, self._device)
        manifest = replace(manifest, dtype=fresh.precision.dtype)  # what auto has become
        if self._fault and (reason := self._fault(fresh)):
            raise InvalidInput(reason)
        with self._turn():
            self._serving = Serving(fresh, manifest)
