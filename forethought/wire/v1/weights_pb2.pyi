from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ("wire_version",)
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    def __init__(self, wire_version: _Optional[int] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("wire_version", "replica_id", "holding")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    HOLDING_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    replica_id: str
    holding: _containers.RepeatedCompositeFieldContainer[Manifest]
    def __init__(self, wire_version: _Optional[int] = ..., replica_id: _Optional[str] = ..., holding: _Optional[_Iterable[_Union[Manifest, _Mapping]]] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("model", "epoch", "version", "sha256", "model_files_sha256", "dtype", "num_bytes", "run_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_FILES_SHA256_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    epoch: int
    version: int
    sha256: str
    model_files_sha256: str
    dtype: str
    num_bytes: int
    run_id: str
    def __init__(self, model: _Optional[str] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., sha256: _Optional[str] = ..., model_files_sha256: _Optional[str] = ..., dtype: _Optional[str] = ..., num_bytes: _Optional[int] = ..., run_id: _Optional[str] = ...) -> None: ...

class PushedFile(_message.Message):
    __slots__ = ("name", "num_bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class PushHeader(_message.Message):
    __slots__ = ("wire_version", "manifest", "codec", "base", "files")
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    wire_version: int
    manifest: Manifest
    codec: str
    base: Manifest
    files: _containers.RepeatedCompositeFieldContainer[PushedFile]
    def __init__(self, wire_version: _Optional[int] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ..., codec: _Optional[str] = ..., base: _Optional[_Union[Manifest, _Mapping]] = ..., files: _Optional[_Iterable[_Union[PushedFile, _Mapping]]] = ...) -> None: ...

class PushMessage(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class PushReply(_message.Message):
    __slots__ = ("holding",)
    HOLDING_FIELD_NUMBER: _ClassVar[int]
    holding: Manifest
    def __init__(self, holding: _Optional[_Union[Manifest, _Mapping]] = ...) -> None: ...
