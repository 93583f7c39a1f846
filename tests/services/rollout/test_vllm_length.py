"""The length that vLLM is started with; no vLLM is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought.errors import InvalidInput
from services.rollout.vllm_build import with_length
from tests import architectures


def test_vllm_stays_within_the_rotary_frequencies_that_rows_are_scored_with(tmp_path: Path) -> None:
    """With a greater length it uses LongRoPE's long factors for short rows too."""
    phi3 = architectures.build_directory(tmp_path / "phi3", "phi3")
    assert with_length({"dtype": "auto"}, phi3) == {"dtype": "auto", "max_model_len": 24}
    assert with_length({"max_model_len": 20}, phi3) == {"max_model_len": 20}
    with pytest.raises(InvalidInput, match=r"max_model_len is 25, .* change beyond 24"):
        with_length({"max_model_len": 25}, phi3)
    llama = architectures.build_directory(tmp_path / "llama", "llama")
    assert with_length({}, llama) == {}
