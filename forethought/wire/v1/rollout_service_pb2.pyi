from forethought.wire.v1 import rollout_pb2 as _rollout_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("wire_version", "prefix_ids", "context_ids", "prompting", "sampling", "seed", "epoch", "min_version")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREFIX_IDS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPTING_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    prefix_ids: bytes
    context_ids: bytes
    prompting: _rollout_pb2.Prompting
    sampling: _rollout_pb2.Sampling
    seed: int
    epoch: int
    min_version: int
    def __init__(self, wire_version: _Optional[int] = ..., prefix_ids: _Optional[bytes] = ..., context_ids: _Optional[bytes] = ..., prompting: _Optional[_Union[_rollout_pb2.Prompting, _Mapping]] = ..., sampling: _Optional[_Union[_rollout_pb2.Sampling, _Mapping]] = ..., seed: _Optional[int] = ..., epoch: _Optional[int] = ..., min_version: _Optional[int] = ...) -> None: ...

class GenerateReply(_message.Message):
    __slots__ = ("wire_version", "thoughts", "epoch", "replica")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    THOUGHTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    thoughts: _containers.RepeatedCompositeFieldContainer[_rollout_pb2.Thought]
    epoch: int
    replica: str
    def __init__(self, wire_version: _Optional[int] = ..., thoughts: _Optional[_Iterable[_Union[_rollout_pb2.Thought, _Mapping]]] = ..., epoch: _Optional[int] = ..., replica: _Optional[str] = ...) -> None: ...
