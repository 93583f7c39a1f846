from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tokens(_message.Message):
    __slots__ = ("text", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: bytes
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[bytes] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("status", "message")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    status: int
    message: str
    def __init__(self, status: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class ScoreItem(_message.Message):
    __slots__ = ("id", "context", "target", "thoughts")
    ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    THOUGHTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    context: Tokens
    target: Tokens
    thoughts: _containers.RepeatedCompositeFieldContainer[Tokens]
    def __init__(self, id: _Optional[str] = ..., context: _Optional[_Union[Tokens, _Mapping]] = ..., target: _Optional[_Union[Tokens, _Mapping]] = ..., thoughts: _Optional[_Iterable[_Union[Tokens, _Mapping]]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("wire_version", "objective", "items")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    objective: str
    items: _containers.RepeatedCompositeFieldContainer[ScoreItem]
    def __init__(self, wire_version: _Optional[int] = ..., objective: _Optional[str] = ..., items: _Optional[_Iterable[_Union[ScoreItem, _Mapping]]] = ...) -> None: ...

class Scores(_message.Message):
    __slots__ = ("rewards", "advantages", "policy_logprobs", "baseline_logprob", "policy_version", "baseline_version")
    REWARDS_FIELD_NUMBER: _ClassVar[int]
    ADVANTAGES_FIELD_NUMBER: _ClassVar[int]
    POLICY_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    BASELINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    rewards: bytes
    advantages: bytes
    policy_logprobs: bytes
    baseline_logprob: float
    policy_version: int
    baseline_version: int
    def __init__(self, rewards: _Optional[bytes] = ..., advantages: _Optional[bytes] = ..., policy_logprobs: _Optional[bytes] = ..., baseline_logprob: _Optional[float] = ..., policy_version: _Optional[int] = ..., baseline_version: _Optional[int] = ...) -> None: ...

class ScoreOutcome(_message.Message):
    __slots__ = ("id", "scores", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    scores: Scores
    error: Failure
    def __init__(self, id: _Optional[str] = ..., scores: _Optional[_Union[Scores, _Mapping]] = ..., error: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class ScoreReply(_message.Message):
    __slots__ = ("wire_version", "items")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    items: _containers.RepeatedCompositeFieldContainer[ScoreOutcome]
    def __init__(self, wire_version: _Optional[int] = ..., items: _Optional[_Iterable[_Union[ScoreOutcome, _Mapping]]] = ...) -> None: ...

class LogprobsRequest(_message.Message):
    __slots__ = ("wire_version", "model", "prefix", "continuations")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    CONTINUATIONS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    model: str
    prefix: Tokens
    continuations: _containers.RepeatedCompositeFieldContainer[Tokens]
    def __init__(self, wire_version: _Optional[int] = ..., model: _Optional[str] = ..., prefix: _Optional[_Union[Tokens, _Mapping]] = ..., continuations: _Optional[_Iterable[_Union[Tokens, _Mapping]]] = ...) -> None: ...

class ContinuationLogprobs(_message.Message):
    __slots__ = ("token_ids", "logprobs", "logprob")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_ids: bytes
    logprobs: bytes
    logprob: float
    def __init__(self, token_ids: _Optional[bytes] = ..., logprobs: _Optional[bytes] = ..., logprob: _Optional[float] = ...) -> None: ...

class LogprobsReply(_message.Message):
    __slots__ = ("wire_version", "model", "epoch", "version", "continuations")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTINUATIONS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    model: str
    epoch: int
    version: int
    continuations: _containers.RepeatedCompositeFieldContainer[ContinuationLogprobs]
    def __init__(self, wire_version: _Optional[int] = ..., model: _Optional[str] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., continuations: _Optional[_Iterable[_Union[ContinuationLogprobs, _Mapping]]] = ...) -> None: ...

class MatchItem(_message.Message):
    __slots__ = ("id", "prediction", "truth", "token_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: str
    prediction: str
    truth: str
    token_bytes: bytes
    def __init__(self, id: _Optional[str] = ..., prediction: _Optional[str] = ..., truth: _Optional[str] = ..., token_bytes: _Optional[bytes] = ...) -> None: ...

class MatchRequest(_message.Message):
    __slots__ = ("wire_version", "kind", "items")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    kind: str
    items: _containers.RepeatedCompositeFieldContainer[MatchItem]
    def __init__(self, wire_version: _Optional[int] = ..., kind: _Optional[str] = ..., items: _Optional[_Iterable[_Union[MatchItem, _Mapping]]] = ...) -> None: ...

class MatchOutcome(_message.Message):
    __slots__ = ("id", "match", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    match: bool
    error: Failure
    def __init__(self, id: _Optional[str] = ..., match: bool = ..., error: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class MatchReply(_message.Message):
    __slots__ = ("wire_version", "items")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    items: _containers.RepeatedCompositeFieldContainer[MatchOutcome]
    def __init__(self, wire_version: _Optional[int] = ..., items: _Optional[_Iterable[_Union[MatchOutcome, _Mapping]]] = ...) -> None: ...

class EntropyRequest(_message.Message):
    __slots__ = ("wire_version", "text", "top_k", "renormalise")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    RENORMALISE_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    text: Tokens
    top_k: int
    renormalise: bool
    def __init__(self, wire_version: _Optional[int] = ..., text: _Optional[_Union[Tokens, _Mapping]] = ..., top_k: _Optional[int] = ..., renormalise: bool = ...) -> None: ...

class EntropyReply(_message.Message):
    __slots__ = ("wire_version", "epoch", "version", "token_ids", "first_position", "entropies")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    ENTROPIES_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    epoch: int
    version: int
    token_ids: bytes
    first_position: int
    entropies: bytes
    def __init__(self, wire_version: _Optional[int] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., first_position: _Optional[int] = ..., entropies: _Optional[bytes] = ...) -> None: ...

class ModelsRequest(_message.Message):
    __slots__ = ("wire_version",)
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    def __init__(self, wire_version: _Optional[int] = ...) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("name", "epoch", "version", "sha256", "dtype", "num_parameters", "max_length_tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    epoch: int
    version: int
    sha256: str
    dtype: str
    num_parameters: int
    max_length_tokens: int
    def __init__(self, name: _Optional[str] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., sha256: _Optional[str] = ..., dtype: _Optional[str] = ..., num_parameters: _Optional[int] = ..., max_length_tokens: _Optional[int] = ...) -> None: ...

class ModelsReply(_message.Message):
    __slots__ = ("wire_version", "policy", "baseline", "objectives")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVES_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    policy: ServedModel
    baseline: ServedModel
    objectives: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, wire_version: _Optional[int] = ..., policy: _Optional[_Union[ServedModel, _Mapping]] = ..., baseline: _Optional[_Union[ServedModel, _Mapping]] = ..., objectives: _Optional[_Iterable[str]] = ...) -> None: ...
