"""The wire format: with the gRPC adapters, the only hand-written code that knows protobuf.

One schema serves gRPC, Redis entries and the journal. Decoding checks the peer's wire version; a
different version and a message that does not parse both raise :class:`InvalidInput`.
"""

from forethought.wire.codec import (
    WIRE_VERSION,
    check_wire_version,
    decode_journal_batch,
    decode_rollout,
    decode_scored,
    decode_task,
    decode_tasks,
    encode_journal_batch,
    encode_rollout,
    encode_scored,
    encode_task,
    encode_tasks,
    manifest_from_proto,
    manifest_to_proto,
)

__all__ = [
    "WIRE_VERSION",
    "check_wire_version",
    "decode_journal_batch",
    "decode_rollout",
    "decode_scored",
    "decode_task",
    "decode_tasks",
    "encode_journal_batch",
    "encode_rollout",
    "encode_scored",
    "encode_task",
    "encode_tasks",
    "manifest_from_proto",
    "manifest_to_proto",
]
