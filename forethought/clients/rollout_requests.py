"""The rollout service's request and its typed reply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forethought.clients.retrying import Request
from forethought.types import Prompting, Sampling, Thought


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """The request of ``Generate``: either ``prefix_ids`` or a context with its prompting.

    Example:
        ``GenerateRequest((1, 5, 39), (), None, Sampling(8, 9), seed=7, epoch=None, min_version=0)``
    """

    prefix_ids: tuple[int, ...]
    context_ids: tuple[int, ...]
    prompting: Prompting | None
    sampling: Sampling
    seed: int
    epoch: int | None
    min_version: int


@dataclass(frozen=True, slots=True)
class Generated:
    """One group of thoughts, and the replica that sampled it. Versions in their spans are of ``epoch``.

    Example:
        ``Generated((thought, other), epoch=1, replica="rollout-a1")``
    """

    thoughts_G: tuple[Thought, ...]
    epoch: int
    replica: str


def generate(
    sampling: Sampling,
    prefix_ids: Sequence[int],
    context_ids: Sequence[int],
    prompting: Prompting | None,
    seed: int,
    epoch: int | None,
    min_version: int,
) -> Request[Generated]:
    """The ``Generate`` call."""
    body = GenerateRequest(
        tuple(prefix_ids), tuple(context_ids), prompting, sampling, seed, epoch, min_version
    )
    return Request("Generate", "", body, _read)


def _read(reply: Any) -> Generated:
    return Generated(**reply)
