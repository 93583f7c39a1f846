"""Templates become token ids once, around a context that is never tokenised again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers import GenerationConfig

from forethought import objectives
from forethought.compute.model import Markers
from forethought.compute.prompting import end_ids, prompting_of
from forethought.errors import InvalidInput
from forethought.objectives.parts.prompts import RPT, Template
from forethought.objectives.rlp import Rlp, RlpConfig
from forethought.special_tokens import choose_bos
from forethought.types import Prompting
from tests import tiny

MARKERS = Markers((tiny.OPEN_ID,), (tiny.CLOSE_ID,))
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def tokenizer_with(chat_template: str | None = None) -> Any:
    tokenizer = tiny.build_tokenizer()
    tokenizer.chat_template = chat_template
    return tokenizer


def text_of(token_ids: tuple[int, ...]) -> str:
    text: str = tiny.build_tokenizer().decode(token_ids)
    return text


def prompting(chat_template: str | None = None, name: str = "rpt", **parameters: Any) -> Prompting:
    return prompting_of(objectives.load(name, parameters), tokenizer_with(chat_template), MARKERS)


@pytest.mark.parametrize("name", ["rlp", "rpt"])
def test_the_plain_prompt_is_the_markers(name: str) -> None:
    plain = Prompting(bridge_ids=(tiny.OPEN_ID,), close_ids=(tiny.CLOSE_ID,))
    assert prompting(CHAT, name, prompt="plain") == plain


def test_without_a_chat_template_the_text_stands_as_it_is() -> None:
    made = prompting(prompt="v1")
    assert text_of(made.head_ids) == RPT["v1"].before
    assert text_of(made.bridge_ids) == RPT["v1"].after + "\n<think>"
    assert made.open_id == tiny.OPEN_ID
    assert made.no_think_head_ids == ()


def test_a_chat_template_puts_its_roles_around() -> None:
    made = prompting(CHAT, prompt="v2")
    template = RPT["v2"]
    assert text_of(made.head_ids) == f"[system]{template.system}[/][user]{template.before}"
    assert text_of(made.bridge_ids) == f"{template.after.rstrip()}[/][assistant]<think>"


def test_a_template_that_opens_the_thought_itself_opens_it_once() -> None:
    made = prompting(CHAT.replace("[assistant]", "[assistant]<think>\n"), prompt="v0")
    assert text_of(made.bridge_ids) == "[/][assistant]<think>"
    assert made.bridge_ids.count(tiny.OPEN_ID) == 1


def test_rlps_system_message() -> None:
    made = prompting(CHAT, "rlp", prompt="v2")
    head = text_of(made.head_ids)
    assert head.startswith("[system]You continue texts")
    assert head.endswith("[/][user]")
    assert text_of(made.bridge_ids) == "[/][assistant]<think>"


@pytest.mark.parametrize(
    ("chat_template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("no message at all", "0 times"),
        ("{{ messages[-1].content }}{{ messages[-1].content }}", "2 times"),
    ],
)
def test_an_unusable_chat_template_is_refused(chat_template: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        prompting(chat_template)


def test_the_seven_templates_differ_as_in_the_paper() -> None:
    assert list(RPT) == [f"v{number}" for number in range(7)]
    assert len({(t.system, t.before, t.after) for t in RPT.values()}) == 7
    fenced = {name for name, t in RPT.items() if "```" in t.before}
    assert fenced == set(RPT) - {"v0"}
    assert [name for name, t in RPT.items() if t.system] == ["v2"]
    assert [name for name, t in RPT.items() if "candidate" in t.before + t.after] == ["v3", "v6"]
    assert [name for name, t in RPT.items() if "examples" in t.before] == ["v4"]
    assert [name for name, t in RPT.items() if "final answer" in t.before] == ["v5"]
    assert [name for name, t in RPT.items() if t.before.startswith("### Context")] == ["v6"]
    for template in RPT.values():
        assert "\\boxed{}" in template.before + template.after
        assert "\\text{}" in template.before + template.after


def test_no_template_writes_a_marker() -> None:
    """The bridge opens the thought; a marker in the instructions would be one."""
    for template in [*RPT.values(), objectives.load("rlp", {"prompt": "v2"}).template]:
        assert isinstance(template, Template)
        assert "think>" not in template.system + template.before + template.after


def test_end_tokens_are_the_models_and_the_tokenizers() -> None:
    model = tiny.build_model()
    assert end_ids(model, tiny.build_tokenizer()) == (tiny.EOS_ID,)
    model.generation_config = GenerationConfig(eos_token_id=[3, tiny.EOS_ID])
    assert end_ids(model, tiny.build_tokenizer()) == (3, tiny.EOS_ID)
    tokenizer = tiny.build_tokenizer()
    tokenizer.eos_token = None
    model.generation_config = GenerationConfig()
    assert end_ids(model, tokenizer) == ()


def bos_tokenizer(chat_template: str | None = None) -> Any:
    tokenizer = tokenizer_with(chat_template)
    tokenizer.bos_token = tiny.EOS
    return tokenizer


def made_of(tokenizer: Any, **parameters: Any) -> Prompting:
    return prompting_of(objectives.load("rpt", parameters), tokenizer, MARKERS)


@pytest.mark.parametrize("written", ["", "{{ bos_token }}", "<eos>", "{{ bos_token }}<eos>"])
@pytest.mark.parametrize("chat", [None, CHAT])
def test_the_tokenizers_bos_begins_every_branch_once(chat: str | None, written: str) -> None:
    tokenizer = bos_tokenizer(chat and written + chat)
    choose_bos(tokenizer, "always")
    expected = prompting(chat, prompt="v1")
    made = made_of(tokenizer, prompt="v1")
    assert made == replace(expected, bos_ids=(tiny.BOS_ID,))
    thinking, plain = made.thinking_prefix((5, 6)), made.no_think_prefix((5, 6))
    assert plain == (tiny.BOS_ID, 5, 6)
    assert thinking == (tiny.BOS_ID, *expected.thinking_prefix((5, 6)))
    assert made.num_thinking_tokens == expected.num_thinking_tokens + 1
    assert made_of(tokenizer, prompt="plain").bos_ids == (tiny.BOS_ID,)


def test_never_leaves_no_bos_on_any_branch() -> None:
    tokenizer = bos_tokenizer("{{ bos_token }}" + CHAT)
    choose_bos(tokenizer, "never")
    assert made_of(tokenizer, prompt="v1") == prompting(CHAT, prompt="v1")


def test_a_template_of_a_tokenizer_without_bos_is_unchanged() -> None:
    """Some chat models call the token that begins each of a template's messages their BOS."""
    made = made_of(bos_tokenizer("{{ bos_token }}" + CHAT), prompt="v1")
    expected = prompting(CHAT, prompt="v1")
    assert made == replace(expected, head_ids=(tiny.EOS_ID, *expected.head_ids))
    assert made.no_think_prefix((5,)) == (5,)


@pytest.mark.parametrize("opened", ["", "<|think|>\n", "<|think|> <|think|>"])
def test_markers_of_several_tokens_open_and_close_once(opened: str) -> None:
    tokenizer = tokenizer_with(CHAT.replace("[assistant]", f"[assistant]{opened}"))
    ids = tuple(tokenizer(text)["input_ids"] for text in ("<|think|>", " so:"))
    markers = Markers(*map(tuple, ids))
    made = prompting_of(objectives.load("rpt", {"prompt": "v0"}), tokenizer, markers)
    kept = opened.removesuffix("\n").removesuffix("<|think|>")
    assert text_of(made.bridge_ids) == f"[/][assistant]{kept}<|think|>"
    assert (made.num_open_tokens, made.num_close_tokens) == (9, 4)
    assert made.open_id is None
    assert made.close_marker_ids == made.close_ids == markers.close_ids
    assert made.remaining_close(closed=True) == ()
    assert made.remaining_close(closed=False) == markers.close_ids


def test_text_after_a_close_of_several_tokens_follows_every_thought() -> None:
    class Asking(Rlp):
        def prompting(self, open_ids: tuple[int, ...], close_ids: tuple[int, ...]) -> Prompting:
            return Prompting((), (70, *open_ids), (*close_ids, 71, 72))

    markers = Markers((1, 2), (3, 4, 5))
    made = prompting_of(Asking(RlpConfig()), tiny.build_tokenizer(), markers)
    assert made.target_prefix((9,), (8, 3, 4, 5), closed=True) == (9, 70, 1, 2, 8, 3, 4, 5, 71, 72)
    within = made.target_prefix((9,), (8, 3, 4), closed=False)  # its budget ended in the marker
    assert within == (9, 70, 1, 2, 8, 3, 4, 3, 4, 5, 71, 72)


def test_an_objectives_own_heads_begin_with_one_bos() -> None:
    class Own(Rlp):
        def prompting(self, open_ids: tuple[int, ...], close_ids: tuple[int, ...]) -> Prompting:
            return Prompting((tiny.BOS_ID, 1), open_ids, close_ids, (tiny.BOS_ID, 2))

    tokenizer = bos_tokenizer()
    choose_bos(tokenizer, "always")
    made = prompting_of(Own(RlpConfig()), tokenizer, MARKERS)
    assert made.thinking_prefix(()) == (tiny.BOS_ID, 1, tiny.OPEN_ID)
    assert made.no_think_prefix(()) == (tiny.BOS_ID, 2)
