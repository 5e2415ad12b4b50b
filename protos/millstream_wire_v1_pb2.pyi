from protos import millstream_v1_pb2 as _millstream_v1_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Origin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REQUEST: _ClassVar[Origin]
    REDIS: _ClassVar[Origin]
    FILE: _ClassVar[Origin]
    DEFAULT: _ClassVar[Origin]

class Lane(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTERACTIVE: _ClassVar[Lane]
    BULK: _ClassVar[Lane]

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    OK: _ClassVar[Status]
    FAILED: _ClassVar[Status]
    INVALID: _ClassVar[Status]
    EXPIRED: _ClassVar[Status]
    POISON: _ClassVar[Status]
    CANCELLED: _ClassVar[Status]
    SHADOW: _ClassVar[Status]

class VersionState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERSION_STATE_UNSPECIFIED: _ClassVar[VersionState]
    LOADING: _ClassVar[VersionState]
    LIVE: _ClassVar[VersionState]
    RETIRING: _ClassVar[VersionState]
REQUEST: Origin
REDIS: Origin
FILE: Origin
DEFAULT: Origin
INTERACTIVE: Lane
BULK: Lane
STATUS_UNSPECIFIED: Status
OK: Status
FAILED: Status
INVALID: Status
EXPIRED: Status
POISON: Status
CANCELLED: Status
SHADOW: Status
VERSION_STATE_UNSPECIFIED: VersionState
LOADING: VersionState
LIVE: VersionState
RETIRING: VersionState

class Hydrated(_message.Message):
    __slots__ = ("index", "origin")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    index: int
    origin: Origin
    def __init__(self, index: _Optional[int] = ..., origin: _Optional[_Union[Origin, str]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("request_id", "model_id", "version", "digest", "matrix", "columns", "entity_id", "deadline_us", "user_request_us", "admitted_us", "gateway", "hydrated", "degraded", "packed", "reply_ttl_s", "body_sha256", "discard_reply", "caller", "trace", "replay")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    ENTITY_ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    USER_REQUEST_US_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_US_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    HYDRATED_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    REPLY_TTL_S_FIELD_NUMBER: _ClassVar[int]
    BODY_SHA256_FIELD_NUMBER: _ClassVar[int]
    DISCARD_REPLY_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model_id: str
    version: str
    digest: bytes
    matrix: _millstream_v1_pb2.Matrix
    columns: _millstream_v1_pb2.Columns
    entity_id: str
    deadline_us: int
    user_request_us: int
    admitted_us: int
    gateway: str
    hydrated: _containers.RepeatedCompositeFieldContainer[Hydrated]
    degraded: bool
    packed: bool
    reply_ttl_s: int
    body_sha256: bytes
    discard_reply: bool
    caller: str
    trace: str
    replay: str
    def __init__(self, request_id: _Optional[str] = ..., model_id: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[bytes] = ..., matrix: _Optional[_Union[_millstream_v1_pb2.Matrix, _Mapping]] = ..., columns: _Optional[_Union[_millstream_v1_pb2.Columns, _Mapping]] = ..., entity_id: _Optional[str] = ..., deadline_us: _Optional[int] = ..., user_request_us: _Optional[int] = ..., admitted_us: _Optional[int] = ..., gateway: _Optional[str] = ..., hydrated: _Optional[_Iterable[_Union[Hydrated, _Mapping]]] = ..., degraded: _Optional[bool] = ..., packed: _Optional[bool] = ..., reply_ttl_s: _Optional[int] = ..., body_sha256: _Optional[bytes] = ..., discard_reply: _Optional[bool] = ..., caller: _Optional[str] = ..., trace: _Optional[str] = ..., replay: _Optional[str] = ...) -> None: ...

class ReplyState(_message.Message):
    __slots__ = ("body_sha256", "lane", "entry_id", "response", "digest", "version")
    BODY_SHA256_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    body_sha256: bytes
    lane: Lane
    entry_id: str
    response: bytes
    digest: bytes
    version: str
    def __init__(self, body_sha256: _Optional[bytes] = ..., lane: _Optional[_Union[Lane, str]] = ..., entry_id: _Optional[str] = ..., response: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., version: _Optional[str] = ...) -> None: ...

class Replies(_message.Message):
    __slots__ = ("replies",)
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[Reply]
    def __init__(self, replies: _Optional[_Iterable[_Union[Reply, _Mapping]]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("request_id", "response", "failed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    response: bytes
    failed: bool
    def __init__(self, request_id: _Optional[str] = ..., response: _Optional[bytes] = ..., failed: _Optional[bool] = ...) -> None: ...

class EventBatch(_message.Message):
    __slots__ = ("header", "events")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Header(_message.Message):
    __slots__ = ("model_id", "version", "digest", "worker", "batch_id", "batch_rows", "engine", "runtime_id", "predicted_us")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_ID_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_US_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    digest: bytes
    worker: str
    batch_id: str
    batch_rows: int
    engine: str
    runtime_id: str
    predicted_us: int
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[bytes] = ..., worker: _Optional[str] = ..., batch_id: _Optional[str] = ..., batch_rows: _Optional[int] = ..., engine: _Optional[str] = ..., runtime_id: _Optional[str] = ..., predicted_us: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("entry", "response", "status", "lane", "entry_id", "delivered_us", "deliveries", "batch_position", "refused_body")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_US_FIELD_NUMBER: _ClassVar[int]
    DELIVERIES_FIELD_NUMBER: _ClassVar[int]
    BATCH_POSITION_FIELD_NUMBER: _ClassVar[int]
    REFUSED_BODY_FIELD_NUMBER: _ClassVar[int]
    entry: Entry
    response: _millstream_v1_pb2.PredictResponse
    status: Status
    lane: Lane
    entry_id: str
    delivered_us: int
    deliveries: int
    batch_position: int
    refused_body: bytes
    def __init__(self, entry: _Optional[_Union[Entry, _Mapping]] = ..., response: _Optional[_Union[_millstream_v1_pb2.PredictResponse, _Mapping]] = ..., status: _Optional[_Union[Status, str]] = ..., lane: _Optional[_Union[Lane, str]] = ..., entry_id: _Optional[str] = ..., delivered_us: _Optional[int] = ..., deliveries: _Optional[int] = ..., batch_position: _Optional[int] = ..., refused_body: _Optional[bytes] = ...) -> None: ...

class SignedRecord(_message.Message):
    __slots__ = ("record", "ed25519")
    RECORD_FIELD_NUMBER: _ClassVar[int]
    ED25519_FIELD_NUMBER: _ClassVar[int]
    record: bytes
    ed25519: bytes
    def __init__(self, record: _Optional[bytes] = ..., ed25519: _Optional[bytes] = ...) -> None: ...

class ModelRecord(_message.Message):
    __slots__ = ("model_id", "revision", "versions", "routing", "decided_us")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ROUTING_FIELD_NUMBER: _ClassVar[int]
    DECIDED_US_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    revision: int
    versions: _containers.RepeatedCompositeFieldContainer[VersionRecord]
    routing: Routing
    decided_us: int
    def __init__(self, model_id: _Optional[str] = ..., revision: _Optional[int] = ..., versions: _Optional[_Iterable[_Union[VersionRecord, _Mapping]]] = ..., routing: _Optional[_Union[Routing, _Mapping]] = ..., decided_us: _Optional[int] = ...) -> None: ...

class VersionRecord(_message.Message):
    __slots__ = ("version", "digest", "state", "signature_json", "artifacts", "location")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_JSON_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    version: str
    digest: bytes
    state: VersionState
    signature_json: bytes
    artifacts: _containers.RepeatedCompositeFieldContainer[ArtifactRecord]
    location: str
    def __init__(self, version: _Optional[str] = ..., digest: _Optional[bytes] = ..., state: _Optional[_Union[VersionState, str]] = ..., signature_json: _Optional[bytes] = ..., artifacts: _Optional[_Iterable[_Union[ArtifactRecord, _Mapping]]] = ..., location: _Optional[str] = ...) -> None: ...

class ArtifactRecord(_message.Message):
    __slots__ = ("name", "sha256", "size", "chunks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: bytes
    size: int
    chunks: int
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[bytes] = ..., size: _Optional[int] = ..., chunks: _Optional[int] = ...) -> None: ...

class Routing(_message.Message):
    __slots__ = ("production", "canary", "canary_basis_points", "salt", "shadow")
    PRODUCTION_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    CANARY_BASIS_POINTS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    production: str
    canary: str
    canary_basis_points: int
    salt: str
    shadow: str
    def __init__(self, production: _Optional[str] = ..., canary: _Optional[str] = ..., canary_basis_points: _Optional[int] = ..., salt: _Optional[str] = ..., shadow: _Optional[str] = ...) -> None: ...
