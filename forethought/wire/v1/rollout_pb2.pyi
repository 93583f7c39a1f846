from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Document(_message.Message):
    __slots__ = ("document_id", "source", "token_ids", "token_bytes", "marks", "entropies", "nll_weights")
    DOCUMENT_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    MARKS_FIELD_NUMBER: _ClassVar[int]
    ENTROPIES_FIELD_NUMBER: _ClassVar[int]
    NLL_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    document_id: str
    source: str
    token_ids: bytes
    token_bytes: bytes
    marks: bytes
    entropies: bytes
    nll_weights: bytes
    def __init__(self, document_id: _Optional[str] = ..., source: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., token_bytes: _Optional[bytes] = ..., marks: _Optional[bytes] = ..., entropies: _Optional[bytes] = ..., nll_weights: _Optional[bytes] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("index", "target_ids")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TARGET_IDS_FIELD_NUMBER: _ClassVar[int]
    index: int
    target_ids: bytes
    def __init__(self, index: _Optional[int] = ..., target_ids: _Optional[bytes] = ...) -> None: ...

class Prompting(_message.Message):
    __slots__ = ("head_ids", "bridge_ids", "close_ids", "no_think_head_ids", "bos_ids", "further_open_tokens", "further_close_tokens")
    HEAD_IDS_FIELD_NUMBER: _ClassVar[int]
    BRIDGE_IDS_FIELD_NUMBER: _ClassVar[int]
    CLOSE_IDS_FIELD_NUMBER: _ClassVar[int]
    NO_THINK_HEAD_IDS_FIELD_NUMBER: _ClassVar[int]
    BOS_IDS_FIELD_NUMBER: _ClassVar[int]
    FURTHER_OPEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FURTHER_CLOSE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    head_ids: bytes
    bridge_ids: bytes
    close_ids: bytes
    no_think_head_ids: bytes
    bos_ids: bytes
    further_open_tokens: int
    further_close_tokens: int
    def __init__(self, head_ids: _Optional[bytes] = ..., bridge_ids: _Optional[bytes] = ..., close_ids: _Optional[bytes] = ..., no_think_head_ids: _Optional[bytes] = ..., bos_ids: _Optional[bytes] = ..., further_open_tokens: _Optional[int] = ..., further_close_tokens: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("group_size", "max_thought_tokens", "temperature", "stop_ids", "prediction_tokens", "prediction_stop_ids", "stop_sequences")
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_THOUGHT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    STOP_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    group_size: int
    max_thought_tokens: int
    temperature: float
    stop_ids: bytes
    prediction_tokens: int
    prediction_stop_ids: bytes
    stop_sequences: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, group_size: _Optional[int] = ..., max_thought_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., stop_ids: _Optional[bytes] = ..., prediction_tokens: _Optional[int] = ..., prediction_stop_ids: _Optional[bytes] = ..., stop_sequences: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("wire_version", "task_id", "epoch", "batch", "min_version", "objective", "objective_json", "document", "positions", "prompting", "sampling", "seed", "max_staleness", "models", "traceparent", "run_id")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    MIN_VERSION_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_JSON_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    PROMPTING_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    task_id: int
    epoch: int
    batch: int
    min_version: int
    objective: str
    objective_json: str
    document: Document
    positions: _containers.RepeatedCompositeFieldContainer[Position]
    prompting: Prompting
    sampling: Sampling
    seed: int
    max_staleness: int
    models: _containers.RepeatedScalarFieldContainer[str]
    traceparent: str
    run_id: str
    def __init__(self, wire_version: _Optional[int] = ..., task_id: _Optional[int] = ..., epoch: _Optional[int] = ..., batch: _Optional[int] = ..., min_version: _Optional[int] = ..., objective: _Optional[str] = ..., objective_json: _Optional[str] = ..., document: _Optional[_Union[Document, _Mapping]] = ..., positions: _Optional[_Iterable[_Union[Position, _Mapping]]] = ..., prompting: _Optional[_Union[Prompting, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., seed: _Optional[int] = ..., max_staleness: _Optional[int] = ..., models: _Optional[_Iterable[str]] = ..., traceparent: _Optional[str] = ..., run_id: _Optional[str] = ...) -> None: ...

class VersionSpan(_message.Message):
    __slots__ = ("version", "num_tokens")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    version: int
    num_tokens: int
    def __init__(self, version: _Optional[int] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class Thought(_message.Message):
    __slots__ = ("token_ids", "behaviour_logprobs", "version_spans", "closed", "num_prediction_tokens", "target_logprobs")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BEHAVIOUR_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    VERSION_SPANS_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    NUM_PREDICTION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TARGET_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_ids: bytes
    behaviour_logprobs: bytes
    version_spans: _containers.RepeatedCompositeFieldContainer[VersionSpan]
    closed: bool
    num_prediction_tokens: int
    target_logprobs: bytes
    def __init__(self, token_ids: _Optional[bytes] = ..., behaviour_logprobs: _Optional[bytes] = ..., version_spans: _Optional[_Iterable[_Union[VersionSpan, _Mapping]]] = ..., closed: bool = ..., num_prediction_tokens: _Optional[int] = ..., target_logprobs: _Optional[bytes] = ...) -> None: ...

class Group(_message.Message):
    __slots__ = ("thoughts",)
    THOUGHTS_FIELD_NUMBER: _ClassVar[int]
    thoughts: _containers.RepeatedCompositeFieldContainer[Thought]
    def __init__(self, thoughts: _Optional[_Iterable[_Union[Thought, _Mapping]]] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("wire_version", "task", "groups", "replica", "error")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    task: Task
    groups: _containers.RepeatedCompositeFieldContainer[Group]
    replica: str
    error: str
    def __init__(self, wire_version: _Optional[int] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[Group, _Mapping]]] = ..., replica: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...
