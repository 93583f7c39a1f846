"""Faulty messages: what a replica could answer, one change to a correct message a row.

Each row names the change, makes it, and gives a part of the reason that the failed result must show.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeAlias

from forethought.wire.packing import pack_floats, pack_ids
from tests.tiny import CLOSE_ID, VOCAB_SIZE

Fault: TypeAlias = tuple[str, Callable[[Any], object], str]

NAN, INF = float("nan"), float("inf")


def assign(path: str, value: object) -> Callable[[Any], None]:
    """Set a field, by its path from the message: ``groups.0.thoughts.1.token_ids``."""
    *parents, name = path.split(".")

    def change(message: Any) -> None:
        for parent in parents:
            message = message[int(parent)] if parent.isdigit() else getattr(message, parent)
        setattr(message, name, value)

    return change


def thought(name: str, value: object) -> Callable[[Any], None]:
    """Set a field of the rollout's first thought, which was sampled as (65, 66, CLOSE_ID)."""
    return assign(f"groups.0.thoughts.0.{name}", value)


def tokens(*ids: int, closed: bool = True, num_predicted: int = 0) -> Callable[[Any], None]:
    """Other tokens in the first thought, with a log-prob and a version each."""

    def change(rollout: Any) -> None:
        spoken = rollout.groups[0].thoughts[0]
        spoken.token_ids, spoken.closed = pack_ids(ids), closed
        spoken.behaviour_logprobs = pack_floats([-1.0] * len(ids))
        spoken.version_spans[0].num_tokens = len(ids)
        spoken.num_prediction_tokens = num_predicted

    return change


ROLLOUT_FAULTS: tuple[Fault, ...] = (
    ("no groups", lambda r: r.ClearField("groups"), "0 groups of thoughts, expected 2"),
    ("a group less", lambda r: r.groups.pop(), "1 groups of thoughts, expected 2"),
    ("a group more", lambda r: r.groups.add(), "3 groups of thoughts, expected 2"),
    ("a thought less", lambda r: r.groups[1].thoughts.pop(), "2 thoughts at position 1, expected 3"),
    ("a thought more", lambda r: r.groups[0].thoughts.add(), "4 thoughts at position 0, expected 3"),
    ("another G everywhere", lambda r: [group.thoughts.pop() for group in r.groups], "expected 3"),
    ("token id of 10^6", tokens(65, 10**6, CLOSE_ID), "token id 1000000, expected 0 to"),
    ("first id past the embeddings", tokens(VOCAB_SIZE, CLOSE_ID), "expected 0 to 258"),
    ("largest uint32", tokens(2**32 - 1, CLOSE_ID), "token id 4294967295"),
    ("empty thought", tokens(), "is empty"),
    ("empty message", lambda r: r.groups[0].thoughts[0].Clear(), "is empty"),
    ("half a token id", thought("token_ids", b"\0\0\0"), "multiple of 4"),
    ("no log-probs", thought("behaviour_logprobs", b""), "0 behaviour log-probs for 3 tokens"),
    ("a log-prob less", thought("behaviour_logprobs", pack_floats([-1, -1])), "2 behaviour"),
    ("NaN log-prob", thought("behaviour_logprobs", pack_floats([-1, NAN, -1])), "log-prob nan"),
    ("infinite log-prob", thought("behaviour_logprobs", pack_floats([-1, -INF, -1])), "-inf"),
    ("positive log-prob", thought("behaviour_logprobs", pack_floats([-1, 0.7, -1])), "log-prob 0.7"),
    ("absurd log-prob", thought("behaviour_logprobs", pack_floats([-1, -1e30, -1])), "-80 to 0"),
    ("beyond the budget", tokens(*[65] * 6, CLOSE_ID), "a thought of 7 tokens, expected 6"),
    ("truncated early", tokens(65, 66, closed=False), "a thought of 2 tokens, expected 6"),
    ("closed without a close", tokens(*[65] * 6), "said to be closed and ends with no stop token"),
    ("truncated by a close", thought("closed", False), "said to be truncated and ends with one"),
    ("tokens after the close", tokens(CLOSE_ID, 65, CLOSE_ID), "goes on after a stop token"),
    ("unasked prediction", tokens(65, CLOSE_ID, 66, num_predicted=1), "1 predicted tokens"),
    ("prediction of all", thought("num_prediction_tokens", 3), "predicts 3 of its 3 tokens"),
    ("prediction of more", thought("num_prediction_tokens", 2**32 - 1), "predicts 4294967295"),
    ("version 99 at S = 0", thought("version_spans.0.version", 99), "version 99, expected 0"),
    ("largest uint64", thought("version_spans.0.version", 2**64 - 1), "version 18446744073709551615"),
    ("a token without a version", thought("version_spans.0.num_tokens", 2), "versions for 2 of 3"),
    ("a version without a token", thought("version_spans.0.num_tokens", 4), "versions for 4 of 3"),
    ("NaN target", thought("target_logprobs", pack_floats([NAN])), "target log-prob nan"),
    ("positive target", thought("target_logprobs", pack_floats([0.7])), "target log-prob 0.7"),
    ("impossible target", thought("target_logprobs", pack_floats([-INF])), "target log-prob -inf"),
    ("a target more", thought("target_logprobs", pack_floats([-1, -1])), "2 target log-probs for 1"),
    (
        "no versions",
        lambda r: r.groups[0].thoughts[0].ClearField("version_spans"),
        "versions for 0 of 3",
    ),
)  # fmt: skip
"""Faults of thoughts: for the receivers of a rollout."""

TASK_FAULTS: tuple[Fault, ...] = (
    (
        "position beyond the document",
        assign("positions.0.index", 13),
        "admitted one in positions_K",
    ),
    ("another position", assign("positions.1.index", 3), "admitted one in positions_K"),
    (
        "another target",
        assign("positions.0.target_ids", pack_ids([65])),
        "admitted one in positions_K",
    ),
    ("no positions", lambda t: t.ClearField("positions"), "admitted one in positions_K"),
    ("batch = 7", assign("batch", 7), "admitted one in batch"),
    ("another task", assign("task_id", 1), "admitted one in task_id"),
    ("another epoch", assign("epoch", 2), "admitted one in epoch"),
    ("min_version", assign("min_version", 1), "admitted one in min_version"),
    ("max_staleness", assign("max_staleness", 50), "admitted one in max_staleness"),
    ("another prompt", assign("prompting.bridge_ids", pack_ids([65])), "admitted one in prompting"),
    ("no close", assign("prompting.close_ids", b""), "admitted one in prompting"),
    (
        "another document",
        assign("document.token_ids", pack_ids([65] * 12)),
        "admitted one in document",
    ),
    ("another source", assign("document.source", "s2"), "admitted one in document"),
    (
        "other weights",
        assign("document.nll_weights", pack_floats([NAN] * 12)),
        "admitted one in document",
    ),
    ("group_size", assign("sampling.group_size", 2), "admitted one in sampling"),
    ("budget", assign("sampling.max_thought_tokens", 100), "admitted one in sampling"),
    ("temperature", assign("sampling.temperature", NAN), "admitted one in sampling"),
    ("another objective", assign("objective", "rpt"), "admitted one in objective"),
    (
        "its parameters",
        assign("objective_json", '{"transform": "floor"}'),
        "admitted one in objective_json",
    ),
    ("models", lambda t: t.ClearField("models"), "admitted one in models"),
    ("seed", assign("seed", 4), "admitted one in seed"),
    ("empty", lambda t: t.Clear(), "wire version 0"),
)
"""Faults of the task that a result is of: for the learner, which knows it."""

SCORE_FAULTS: tuple[Fault, ...] = (
    ("no scores", lambda s: s.ClearField("groups"), "rewards of shape []"),
    ("a group less", lambda s: s.groups.pop(), "rewards of shape [3], expected [3, 3]"),
    ("a group more", lambda s: s.groups.add(), "rewards of shape [3, 3, 0]"),
    ("a reward less", assign("groups.1.rewards", pack_floats([0, 1])), "rewards of shape [3, 2]"),
    ("a reward more", assign("groups.0.rewards", pack_floats([0] * 4)), "rewards of shape [4, 3]"),
    ("NaN reward", assign("groups.0.rewards", pack_floats([0, NAN, 1])), "reward nan"),
    ("infinite reward", assign("groups.0.rewards", pack_floats([0, INF, 1])), "reward inf"),
    ("huge reward", assign("groups.0.rewards", pack_floats([0, 1e30, 1])), "reward 1e+30"),
    ("no likelihoods", assign("groups.0.policy_logprobs", b""), "log-probs of shape [0, 3]"),
    ("NaN likelihood", assign("groups.0.policy_logprobs", pack_floats([NAN] * 3)), "nan"),
    (
        "positive likelihood",
        assign("groups.0.policy_logprobs", pack_floats([0, 3, 0])),
        "log-likelihood 3,",
    ),
    ("NaN baseline", assign("groups.1.baseline_logprob", NAN), "log-likelihood nan"),
    ("positive baseline", assign("groups.1.baseline_logprob", 2.5), "log-likelihood 2.5"),
    ("scorer of version 99", assign("policy_version", 99), "by policy version 99, expected 0"),
    ("baseline of version 99", assign("baseline_version", 99), "by baseline version 99"),
    ("another wire version", assign("wire_version", 9), "speaks wire version 9"),
)
"""Faults of scores."""

BODY_FAULTS: tuple[tuple[str, Callable[[bytes], bytes], str], ...] = (
    ("nothing", lambda body: b"", "wire version 0"),
    ("no protobuf", lambda body: b"\xff" * 40, "are not a"),
    ("half of it", lambda body: body[: len(body) // 2], "are not a"),
    ("invalid UTF-8", lambda body: body + struct.pack("BB3s", 0x32, 3, b"\xff\xfe\xfd"), "are not a"),
    ("oversize", lambda body: body + bytes((0x3A, 0x80, 0x80, 0x80, 1)) + b"a" * 2**21, "at most 1048576"),
)  # fmt: skip
"""Faults in place of a message."""
