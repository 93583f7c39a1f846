"""The think markers of a model that is evaluated.

Design: those that are named, else those of the run that trained the model, else ``<think>`` and
``</think>``; each is one token or ordinary text of several. The price: a model that was moved out of its
run has to be given markers of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from forethought.run.checkpoints import Checkpoint


@dataclass(frozen=True, slots=True)
class MarkerTexts:
    """The texts of the think markers, each one token or several.

    Example:
        ``MarkerTexts("<think>", "</think>")``
    """

    think_open: str
    think_close: str


DEFAULT_MARKERS = MarkerTexts("<think>", "</think>")


def markers_of(checkpoint: Checkpoint) -> tuple[str, str]:
    """The open and close marker of the run that a checkpoint belongs to; empty without a run.

    Raises:
        InvalidInput: the run's configuration cannot be read.
    """
    from forethought.config.loading import read_toml

    if checkpoint.run is None or not checkpoint.run.config.is_file():
        return ("", "")
    section = read_toml(checkpoint.run.config).get("model", {})
    return (section.get("think_open", ""), section.get("think_close", ""))
