"""From a template and a tokenizer to the tokens around a context, once at startup.

Design: a template is rendered with a placeholder for the context, through the tokenizer's chat template if
it has one, and the two halves are tokenised separately. The context between them keeps the corpus's tokens.
The price: characters are never merged across the boundaries, as tokenising the whole text might do.

The tokenizer's BOS is kept apart from the template, because it precedes the no-think branch too; a chat
template that renders it gives no second one. Of a tokenizer that adds none, a template's text is unchanged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from forethought.compute.model import Markers
from forethought.errors import InvalidInput
from forethought.objectives import Objective
from forethought.objectives.parts.prompts import Template
from forethought.special_tokens import special_tokens_of
from forethought.types import Prompting

_MARK = "\u241fcontext\u241f"  # survives templates that strip a message


def prompting_of(objective: Objective, tokenizer: Any, markers: Markers) -> Prompting:
    """The tokens that an objective puts around a context and its thought.

    Raises:
        InvalidInput: the tokenizer's chat template cannot take the objective's messages.
    """
    special = special_tokens_of(tokenizer)
    prompting = objective.prompting(markers.open_ids, markers.close_ids)
    if objective.template is not None:
        before, after = _rendered(objective.template, tokenizer)
        bridge_ids = _without_open(_tokens(tokenizer, after), tokenizer, markers.open_ids)
        prompting = replace(
            prompting,
            head_ids=_tokens(tokenizer, before) + prompting.head_ids,
            bridge_ids=bridge_ids + prompting.bridge_ids,
        )
    return replace(
        prompting,
        head_ids=special.without_bos(prompting.head_ids),
        no_think_head_ids=special.without_bos(prompting.no_think_head_ids),
        bos_ids=special.bos_ids,
        num_open_tokens=len(markers.open_ids),
        num_close_tokens=len(markers.close_ids),
    )


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """A model's end-of-text tokens, from its generation config and its tokenizer."""
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])}
    return tuple(sorted(token_id for token_id in found if token_id is not None))


def _rendered(template: Template, tokenizer: Any) -> tuple[str, str]:
    """The text before and after the context."""
    message = f"{template.before}{_MARK}{template.after}"
    if getattr(tokenizer, "chat_template", None):
        text = _chat(template.system, message, tokenizer)
    else:
        text = "\n\n".join(part for part in (template.system, message) if part)
        text += "\n" if template.after else ""
    before, mark, after = text.partition(_MARK)
    if not mark or _MARK in after:
        raise InvalidInput(
            f"the tokenizer's chat template renders the user's message {text.count(_MARK)} times; expected "
            "once: choose the plain prompt, or correct chat_template"
        )
    return before, after


def _chat(system: str, message: str, tokenizer: Any) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": message})
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a template may raise anything
        raise InvalidInput(
            f"the tokenizer's chat template refuses the prompt ({error}); expected one that accepts "
            f"{'a system and ' if system else ''}a user message: choose another prompt"
        ) from error
    return text


def _without_open(
    token_ids: tuple[int, ...], tokenizer: Any, open_ids: tuple[int, ...]
) -> tuple[int, ...]:
    """Drop a final open marker that some chat templates add: the objective's bridge has one."""
    size = len(open_ids)
    starts = range(len(token_ids) - size, -1, -1)
    last = next((i for i in starts if token_ids[i : i + size] == open_ids), None)
    if last is None or tokenizer.decode(token_ids[last + size :]).strip():
        return token_ids
    return token_ids[:last]


def _tokens(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
