from forethought.wire.v1 import rollout_pb2 as _rollout_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoredGroup(_message.Message):
    __slots__ = ("rewards", "policy_logprobs", "baseline_logprob")
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    POLICY_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    rewards: bytes
    policy_logprobs: bytes
    baseline_logprob: float
    def __init__(self, rewards: _Optional[bytes] = ..., policy_logprobs: _Optional[bytes] = ..., baseline_logprob: _Optional[float] = ...) -> None: ...

class ScoredRollout(_message.Message):
    __slots__ = ("wire_version", "rollout", "groups", "policy_version", "baseline_version", "replica", "error")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASELINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    rollout: _rollout_pb2.Rollout
    groups: _containers.RepeatedCompositeFieldContainer[ScoredGroup]
    policy_version: int
    baseline_version: int
    replica: str
    error: str
    def __init__(self, wire_version: _Optional[int] = ..., rollout: _Optional[_Union[_rollout_pb2.Rollout, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[ScoredGroup, _Mapping]]] = ..., policy_version: _Optional[int] = ..., baseline_version: _Optional[int] = ..., replica: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class JournalBatch(_message.Message):
    __slots__ = ("wire_version", "epoch", "batch", "version", "results")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    epoch: int
    batch: int
    version: int
    results: _containers.RepeatedCompositeFieldContainer[ScoredRollout]
    def __init__(self, wire_version: _Optional[int] = ..., epoch: _Optional[int] = ..., batch: _Optional[int] = ..., version: _Optional[int] = ..., results: _Optional[_Iterable[_Union[ScoredRollout, _Mapping]]] = ...) -> None: ...

class TaskList(_message.Message):
    __slots__ = ("wire_version", "tasks")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    tasks: _containers.RepeatedCompositeFieldContainer[_rollout_pb2.Task]
    def __init__(self, wire_version: _Optional[int] = ..., tasks: _Optional[_Iterable[_Union[_rollout_pb2.Task, _Mapping]]] = ...) -> None: ...
