"""The harness's transformers model, whose answers end one by one.

    open … thought … close … answer … stop
                            └ stop sequences count from here on

Design: the harness ends a batch when all of its answers hold the same stop sequence, and looks for one
inside thoughts too, where a line break cuts off what the answer would have been. Here an answer ends at its
first stop sequence outside a thought, and a batch with its longest answer. Texts are cut by the harness as
before, so that without thoughts the figures are those of plain ``lm_eval``. The price: one of its model's
private methods is replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import StoppingCriteria, StoppingCriteriaList

from forethought.errors import InvalidInput
from forethought.lab.downstream.markers import MarkerTexts

log = logging.getLogger(__name__)

_MORE_TOKENS = 2  # a sequence may be sampled in more tokens than it is encoded in


class AnsweringModel(HFLM):  # type: ignore[misc]  # untyped
    """As ``lm_eval --model hf``; with ``markers``, stop sequences inside thoughts are ignored."""

    def __init__(self, *, markers: MarkerTexts | None, **settings: Any) -> None:
        super().__init__(**settings)
        self._markers = markers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers to prompts, in order.

        Raises:
            InvalidInput: the model takes no prompt beside answers of the requested length.
        """
        longest = max(
            request.args[1].get("max_gen_toks", self.max_gen_toks) for request in requests
        )
        room = self.max_length - longest
        if room <= 0:
            raise InvalidInput(
                f"answers may have {longest:,} tokens, and the model takes {self.max_length:,} with their "
                "prompts; expected shorter ones: --max-tokens"
            )
        num_cut = sum(len(self.tok_encode(request.args[0])) > room for request in requests)
        if num_cut:
            log.warning(
                "%d of %d prompts are longer than the %d tokens that the model takes beside an answer: "
                "their beginnings are cut off; --max-tokens leaves them more",
                *(num_cut, len(requests), room),
            )
        answers: list[str] = super().generate_until(requests, disable_tqdm)
        return answers

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation: Any
    ) -> torch.Tensor:
        if not generation.get("temperature"):
            generation = {**generation, "do_sample": False, "temperature": None}
        ends = AnswerEnds(self.tokenizer, stop, context, self._markers)
        generated: torch.Tensor = self.model.generate(
            input_ids=context,
            max_length=max_length,
            stopping_criteria=StoppingCriteriaList([ends]),
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            **generation,
        )
        return generated


class AnswerEnds(StoppingCriteria):
    """Which rows of a batch have ended [B]: those with a stop sequence outside a thought.

    A row is in a thought if the last marker in its prompt's end and its answer is the open marker.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str],
        prompts: torch.Tensor,
        markers: MarkerTexts | None,
    ) -> None:
        self._tokenizer, self._markers = tokenizer, markers
        self._stop = [text for text in stop if text]
        searched = [*self._stop, *((markers.think_open, markers.think_close) if markers else ())]
        lengths = (len(tokenizer.encode(text, add_special_tokens=False)) for text in searched)
        self._num_searched = max(lengths, default=0) + _MORE_TOKENS
        num_rows, num_prompt_tokens = prompts.shape
        self._begins = [num_prompt_tokens] * num_rows  # of the text after the last marker
        self._ended = [False] * num_rows
        self._thinking = [markers is not None and self._opens(row) for row in prompts.tolist()]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Which rows have ended after their newest token; called once per token."""
        for row, token_ids in enumerate(input_ids.tolist()):
            if not self._ended[row]:
                self._advance(row, token_ids)
        return torch.tensor(self._ended, device=input_ids.device)

    def _opens(self, prompt_ids: list[int]) -> bool:
        assert self._markers
        return self._tail(prompt_ids, 0).rstrip().endswith(self._markers.think_open.rstrip())

    def _advance(self, row: int, token_ids: list[int]) -> None:
        text = self._tail(token_ids, self._begins[row])
        awaited = self._awaited(row)
        if awaited and awaited in text:
            self._thinking[row] = not self._thinking[row]
            self._begins[row] = len(token_ids)
        elif not self._thinking[row]:
            self._ended[row] = any(sequence in text for sequence in self._stop)

    def _awaited(self, row: int) -> str:
        """The marker that changes a row's state; empty without markers."""
        if self._markers is None:
            return ""
        return self._markers.think_close if self._thinking[row] else self._markers.think_open

    def _tail(self, token_ids: list[int], begin: int) -> str:
        """The text of the last tokens, none of them from before ``begin``."""
        last = token_ids[max(begin, len(token_ids) - self._num_searched) :]
        text: str = self._tokenizer.decode(last)
        return text
