import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Value(_message.Message):
    __slots__ = ("number", "integer", "boolean", "text")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    BOOLEAN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    number: float
    integer: int
    boolean: bool
    text: str
    def __init__(self, number: _Optional[float] = ..., integer: _Optional[int] = ..., boolean: _Optional[bool] = ..., text: _Optional[str] = ...) -> None: ...

class Matrix(_message.Message):
    __slots__ = ("rows", "float64")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FLOAT64_FIELD_NUMBER: _ClassVar[int]
    rows: int
    float64: bytes
    def __init__(self, rows: _Optional[int] = ..., float64: _Optional[bytes] = ...) -> None: ...

class Doubles(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class Integers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class Booleans(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, values: _Optional[_Iterable[bool]] = ...) -> None: ...

class Strings(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("doubles", "integers", "booleans", "strings", "nulls")
    DOUBLES_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    BOOLEANS_FIELD_NUMBER: _ClassVar[int]
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    NULLS_FIELD_NUMBER: _ClassVar[int]
    doubles: Doubles
    integers: Integers
    booleans: Booleans
    strings: Strings
    nulls: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, doubles: _Optional[_Union[Doubles, _Mapping]] = ..., integers: _Optional[_Union[Integers, _Mapping]] = ..., booleans: _Optional[_Union[Booleans, _Mapping]] = ..., strings: _Optional[_Union[Strings, _Mapping]] = ..., nulls: _Optional[_Iterable[int]] = ...) -> None: ...

class Columns(_message.Message):
    __slots__ = ("rows", "columns")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    rows: int
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, rows: _Optional[int] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ("matrix", "columns")
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    matrix: Matrix
    columns: Columns
    def __init__(self, matrix: _Optional[_Union[Matrix, _Mapping]] = ..., columns: _Optional[_Union[Columns, _Mapping]] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("model_id", "version", "inputs", "features", "rows", "entity_id", "request_id", "discard_reply", "replay")
    class FeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ENTITY_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DISCARD_REPLY_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    inputs: _containers.RepeatedCompositeFieldContainer[Value]
    features: _containers.MessageMap[str, Value]
    rows: Rows
    entity_id: str
    request_id: str
    discard_reply: bool
    replay: str
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Value, _Mapping]]] = ..., features: _Optional[_Mapping[str, Value]] = ..., rows: _Optional[_Union[Rows, _Mapping]] = ..., entity_id: _Optional[str] = ..., request_id: _Optional[str] = ..., discard_reply: _Optional[bool] = ..., replay: _Optional[str] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("outputs",)
    class OutputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.MessageMap[str, Value]
    def __init__(self, outputs: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class OutputColumn(_message.Message):
    __slots__ = ("name", "column")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    name: str
    column: Column
    def __init__(self, name: _Optional[str] = ..., column: _Optional[_Union[Column, _Mapping]] = ...) -> None: ...

class Violation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("reason", "message", "violations", "code")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    violations: _containers.RepeatedCompositeFieldContainer[Violation]
    code: int
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., violations: _Optional[_Iterable[_Union[Violation, _Mapping]]] = ..., code: _Optional[int] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("request_id", "model_id", "version", "predictions", "user_request_timestamp", "predicted_at_timestamp", "error", "columns", "degraded", "pending")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    USER_REQUEST_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_AT_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model_id: str
    version: str
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    user_request_timestamp: _timestamp_pb2.Timestamp
    predicted_at_timestamp: _timestamp_pb2.Timestamp
    error: Error
    columns: _containers.RepeatedCompositeFieldContainer[OutputColumn]
    degraded: bool
    pending: bool
    def __init__(self, request_id: _Optional[str] = ..., model_id: _Optional[str] = ..., version: _Optional[str] = ..., predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., user_request_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., predicted_at_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., columns: _Optional[_Iterable[_Union[OutputColumn, _Mapping]]] = ..., degraded: _Optional[bool] = ..., pending: _Optional[bool] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("request_id", "model_id", "duplicate")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model_id: str
    duplicate: bool
    def __init__(self, request_id: _Optional[str] = ..., model_id: _Optional[str] = ..., duplicate: _Optional[bool] = ...) -> None: ...

class GetResultRequest(_message.Message):
    __slots__ = ("model_id", "request_id", "wait")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    request_id: str
    wait: _duration_pb2.Duration
    def __init__(self, model_id: _Optional[str] = ..., request_id: _Optional[str] = ..., wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model_id", "version")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class FeatureSpec(_message.Message):
    __slots__ = ("index", "name", "type", "required", "default", "example", "min", "max", "categories", "nullable", "unit", "description", "hydrated")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    NULLABLE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    HYDRATED_FIELD_NUMBER: _ClassVar[int]
    index: int
    name: str
    type: str
    required: bool
    default: Value
    example: Value
    min: float
    max: float
    categories: _containers.RepeatedCompositeFieldContainer[Value]
    nullable: bool
    unit: str
    description: str
    hydrated: bool
    def __init__(self, index: _Optional[int] = ..., name: _Optional[str] = ..., type: _Optional[str] = ..., required: _Optional[bool] = ..., default: _Optional[_Union[Value, _Mapping]] = ..., example: _Optional[_Union[Value, _Mapping]] = ..., min: _Optional[float] = ..., max: _Optional[float] = ..., categories: _Optional[_Iterable[_Union[Value, _Mapping]]] = ..., nullable: _Optional[bool] = ..., unit: _Optional[str] = ..., description: _Optional[str] = ..., hydrated: _Optional[bool] = ...) -> None: ...

class OutputSpec(_message.Message):
    __slots__ = ("name", "type", "call")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: str
    call: str
    def __init__(self, name: _Optional[str] = ..., type: _Optional[str] = ..., call: _Optional[str] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("version", "state", "digest", "trained_date", "location", "traffic_percent", "artifacts", "engine")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRAINED_DATE_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_PERCENT_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    version: str
    state: str
    digest: str
    trained_date: str
    location: str
    traffic_percent: float
    artifacts: _containers.RepeatedCompositeFieldContainer[Artifact]
    engine: str
    def __init__(self, version: _Optional[str] = ..., state: _Optional[str] = ..., digest: _Optional[str] = ..., trained_date: _Optional[str] = ..., location: _Optional[str] = ..., traffic_percent: _Optional[float] = ..., artifacts: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ..., engine: _Optional[str] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("name", "sha256", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    size: int
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("model_id", "version", "digest", "location", "trained_date", "features", "outputs", "entity", "versions", "signature_json")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    TRAINED_DATE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_JSON_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    digest: str
    location: str
    trained_date: str
    features: _containers.RepeatedCompositeFieldContainer[FeatureSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[OutputSpec]
    entity: str
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    signature_json: str
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., location: _Optional[str] = ..., trained_date: _Optional[str] = ..., features: _Optional[_Iterable[_Union[FeatureSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[OutputSpec, _Mapping]]] = ..., entity: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ..., signature_json: _Optional[str] = ...) -> None: ...

class EventQuery(_message.Message):
    __slots__ = ("model_id", "version", "status", "entity_id", "request_id", "since", "until", "limit", "oldest_first", "lane", "replay")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ENTITY_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIRST_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    status: str
    entity_id: str
    request_id: str
    since: _timestamp_pb2.Timestamp
    until: _timestamp_pb2.Timestamp
    limit: int
    oldest_first: bool
    lane: str
    replay: str
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., status: _Optional[str] = ..., entity_id: _Optional[str] = ..., request_id: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., limit: _Optional[int] = ..., oldest_first: _Optional[bool] = ..., lane: _Optional[str] = ..., replay: _Optional[str] = ...) -> None: ...

class EventCount(_message.Message):
    __slots__ = ("events", "distinct_requests", "by_status", "by_model", "alarms")
    class ByStatusEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ByModelEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class AlarmsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    DISTINCT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    BY_STATUS_FIELD_NUMBER: _ClassVar[int]
    BY_MODEL_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    events: int
    distinct_requests: int
    by_status: _containers.ScalarMap[str, int]
    by_model: _containers.ScalarMap[str, int]
    alarms: _containers.ScalarMap[str, str]
    def __init__(self, events: _Optional[int] = ..., distinct_requests: _Optional[int] = ..., by_status: _Optional[_Mapping[str, int]] = ..., by_model: _Optional[_Mapping[str, int]] = ..., alarms: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListSegmentsRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class ListSegmentsResponse(_message.Message):
    __slots__ = ("manifests", "folder", "positions", "gaps", "anchors", "erasures", "runtimes")
    class RuntimesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MANIFESTS_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    GAPS_FIELD_NUMBER: _ClassVar[int]
    ANCHORS_FIELD_NUMBER: _ClassVar[int]
    ERASURES_FIELD_NUMBER: _ClassVar[int]
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    manifests: _containers.RepeatedScalarFieldContainer[str]
    folder: str
    positions: _containers.RepeatedCompositeFieldContainer[LogPosition]
    gaps: _containers.RepeatedCompositeFieldContainer[LogGap]
    anchors: _containers.RepeatedCompositeFieldContainer[LogAnchor]
    erasures: _containers.RepeatedCompositeFieldContainer[LogErasure]
    runtimes: _containers.ScalarMap[str, str]
    def __init__(self, manifests: _Optional[_Iterable[str]] = ..., folder: _Optional[str] = ..., positions: _Optional[_Iterable[_Union[LogPosition, _Mapping]]] = ..., gaps: _Optional[_Iterable[_Union[LogGap, _Mapping]]] = ..., anchors: _Optional[_Iterable[_Union[LogAnchor, _Mapping]]] = ..., erasures: _Optional[_Iterable[_Union[LogErasure, _Mapping]]] = ..., runtimes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class LogPosition(_message.Message):
    __slots__ = ("model_id", "entry_id", "number", "epoch", "chain", "ahead")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    entry_id: str
    number: int
    epoch: str
    chain: bytes
    ahead: int
    def __init__(self, model_id: _Optional[str] = ..., entry_id: _Optional[str] = ..., number: _Optional[int] = ..., epoch: _Optional[str] = ..., chain: _Optional[bytes] = ..., ahead: _Optional[int] = ...) -> None: ...

class LogGap(_message.Message):
    __slots__ = ("model_id", "from_entry", "to_entry", "expected", "found", "noted_at", "why")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_ENTRY_FIELD_NUMBER: _ClassVar[int]
    TO_ENTRY_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    NOTED_AT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    from_entry: str
    to_entry: str
    expected: int
    found: int
    noted_at: _timestamp_pb2.Timestamp
    why: str
    def __init__(self, model_id: _Optional[str] = ..., from_entry: _Optional[str] = ..., to_entry: _Optional[str] = ..., expected: _Optional[int] = ..., found: _Optional[int] = ..., noted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., why: _Optional[str] = ...) -> None: ...

class LogAnchor(_message.Message):
    __slots__ = ("model_id", "number", "chain", "removed_at")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    REMOVED_AT_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    number: int
    chain: bytes
    removed_at: _timestamp_pb2.Timestamp
    def __init__(self, model_id: _Optional[str] = ..., number: _Optional[int] = ..., chain: _Optional[bytes] = ..., removed_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class LogErasure(_message.Message):
    __slots__ = ("erased_at", "model_id", "entity_sha256", "events", "reason")
    ERASED_AT_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    ENTITY_SHA256_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    erased_at: _timestamp_pb2.Timestamp
    model_id: str
    entity_sha256: bytes
    events: int
    reason: str
    def __init__(self, erased_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model_id: _Optional[str] = ..., entity_sha256: _Optional[bytes] = ..., events: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ReadSegmentRequest(_message.Message):
    __slots__ = ("model_id", "file")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    file: str
    def __init__(self, model_id: _Optional[str] = ..., file: _Optional[str] = ...) -> None: ...

class ReadLiveRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class FilePiece(_message.Message):
    __slots__ = ("content", "positions")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    positions: _containers.RepeatedCompositeFieldContainer[LogPosition]
    def __init__(self, content: _Optional[bytes] = ..., positions: _Optional[_Iterable[_Union[LogPosition, _Mapping]]] = ...) -> None: ...

class SealRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class SealResponse(_message.Message):
    __slots__ = ("manifests",)
    MANIFESTS_FIELD_NUMBER: _ClassVar[int]
    manifests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, manifests: _Optional[_Iterable[str]] = ...) -> None: ...

class EraseRequest(_message.Message):
    __slots__ = ("entity_id", "model_id", "reason")
    ENTITY_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    entity_id: str
    model_id: str
    reason: str
    def __init__(self, entity_id: _Optional[str] = ..., model_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class EraseResponse(_message.Message):
    __slots__ = ("events", "segments")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    events: int
    segments: int
    def __init__(self, events: _Optional[int] = ..., segments: _Optional[int] = ...) -> None: ...

class ModelEvent(_message.Message):
    __slots__ = ("model_id", "request_id", "version", "digest", "status", "lane", "entity_id", "inputs_json", "outputs_json", "origins_json", "error_reason", "error_message", "user_request_timestamp", "admitted_timestamp", "appended_timestamp", "delivered_timestamp", "predicted_at_timestamp", "worker", "gateway", "caller", "deliveries", "entry_id", "event_entry_id", "batch_id", "batch_rows", "batch_position", "rows", "engine", "runtime_id", "degraded", "replay", "erased_at")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    ENTITY_ID_FIELD_NUMBER: _ClassVar[int]
    INPUTS_JSON_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_JSON_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_JSON_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    USER_REQUEST_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    APPENDED_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_AT_TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    DELIVERIES_FIELD_NUMBER: _ClassVar[int]
    ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_ENTRY_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_ID_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    BATCH_POSITION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_ID_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    REPLAY_FIELD_NUMBER: _ClassVar[int]
    ERASED_AT_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    request_id: str
    version: str
    digest: str
    status: str
    lane: str
    entity_id: str
    inputs_json: str
    outputs_json: str
    origins_json: str
    error_reason: str
    error_message: str
    user_request_timestamp: _timestamp_pb2.Timestamp
    admitted_timestamp: _timestamp_pb2.Timestamp
    appended_timestamp: _timestamp_pb2.Timestamp
    delivered_timestamp: _timestamp_pb2.Timestamp
    predicted_at_timestamp: _timestamp_pb2.Timestamp
    worker: str
    gateway: str
    caller: str
    deliveries: int
    entry_id: str
    event_entry_id: str
    batch_id: str
    batch_rows: int
    batch_position: int
    rows: int
    engine: str
    runtime_id: str
    degraded: bool
    replay: str
    erased_at: _timestamp_pb2.Timestamp
    def __init__(self, model_id: _Optional[str] = ..., request_id: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., status: _Optional[str] = ..., lane: _Optional[str] = ..., entity_id: _Optional[str] = ..., inputs_json: _Optional[str] = ..., outputs_json: _Optional[str] = ..., origins_json: _Optional[str] = ..., error_reason: _Optional[str] = ..., error_message: _Optional[str] = ..., user_request_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., admitted_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., appended_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., delivered_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., predicted_at_timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., worker: _Optional[str] = ..., gateway: _Optional[str] = ..., caller: _Optional[str] = ..., deliveries: _Optional[int] = ..., entry_id: _Optional[str] = ..., event_entry_id: _Optional[str] = ..., batch_id: _Optional[str] = ..., batch_rows: _Optional[int] = ..., batch_position: _Optional[int] = ..., rows: _Optional[int] = ..., engine: _Optional[str] = ..., runtime_id: _Optional[str] = ..., degraded: _Optional[bool] = ..., replay: _Optional[str] = ..., erased_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class VersionInfo(_message.Message):
    __slots__ = ("model_id", "version", "state", "tag", "digest", "trained_date", "location", "problem", "first_seen", "warnings", "held_back", "statement", "traffic_percent")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TRAINED_DATE_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    HELD_BACK_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_PERCENT_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    state: str
    tag: str
    digest: str
    trained_date: str
    location: str
    problem: str
    first_seen: _timestamp_pb2.Timestamp
    warnings: _containers.RepeatedScalarFieldContainer[str]
    held_back: str
    statement: str
    traffic_percent: float
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[str] = ..., tag: _Optional[str] = ..., digest: _Optional[str] = ..., trained_date: _Optional[str] = ..., location: _Optional[str] = ..., problem: _Optional[str] = ..., first_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., held_back: _Optional[str] = ..., statement: _Optional[str] = ..., traffic_percent: _Optional[float] = ...) -> None: ...

class ModelRouting(_message.Message):
    __slots__ = ("model_id", "production", "statement", "coming", "pinned", "canary", "canary_percent", "abort_over", "canary_finished", "canary_failed", "shadow", "gate")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    PRODUCTION_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    COMING_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    CANARY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    ABORT_OVER_FIELD_NUMBER: _ClassVar[int]
    CANARY_FINISHED_FIELD_NUMBER: _ClassVar[int]
    CANARY_FAILED_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    production: str
    statement: str
    coming: str
    pinned: str
    canary: str
    canary_percent: float
    abort_over: float
    canary_finished: int
    canary_failed: int
    shadow: str
    gate: str
    def __init__(self, model_id: _Optional[str] = ..., production: _Optional[str] = ..., statement: _Optional[str] = ..., coming: _Optional[str] = ..., pinned: _Optional[str] = ..., canary: _Optional[str] = ..., canary_percent: _Optional[float] = ..., abort_over: _Optional[float] = ..., canary_finished: _Optional[int] = ..., canary_failed: _Optional[int] = ..., shadow: _Optional[str] = ..., gate: _Optional[str] = ...) -> None: ...

class ListVersionsResponse(_message.Message):
    __slots__ = ("versions", "store", "last_poll", "store_problem", "models")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    LAST_POLL_FIELD_NUMBER: _ClassVar[int]
    STORE_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[VersionInfo]
    store: str
    last_poll: _timestamp_pb2.Timestamp
    store_problem: str
    models: _containers.RepeatedCompositeFieldContainer[ModelRouting]
    def __init__(self, versions: _Optional[_Iterable[_Union[VersionInfo, _Mapping]]] = ..., store: _Optional[str] = ..., last_poll: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., store_problem: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ModelRouting, _Mapping]]] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SyncResponse(_message.Message):
    __slots__ = ("listed", "downloaded", "changes", "problems")
    LISTED_FIELD_NUMBER: _ClassVar[int]
    DOWNLOADED_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    listed: int
    downloaded: int
    changes: _containers.RepeatedScalarFieldContainer[str]
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, listed: _Optional[int] = ..., downloaded: _Optional[int] = ..., changes: _Optional[_Iterable[str]] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class HistoryRequest(_message.Message):
    __slots__ = ("model_id",)
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    def __init__(self, model_id: _Optional[str] = ...) -> None: ...

class HistoryEntry(_message.Message):
    __slots__ = ("at", "model_id", "version", "digest", "act", "detail", "by")
    AT_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    ACT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    model_id: str
    version: str
    digest: str
    act: str
    detail: str
    by: str
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model_id: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., act: _Optional[str] = ..., detail: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class HistoryResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[HistoryEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[HistoryEntry, _Mapping]]] = ...) -> None: ...

class PromoteRequest(_message.Message):
    __slots__ = ("model_id", "version", "by", "despite_gate")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    DESPITE_GATE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    by: str
    despite_gate: bool
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., by: _Optional[str] = ..., despite_gate: _Optional[bool] = ...) -> None: ...

class SetCanaryRequest(_message.Message):
    __slots__ = ("model_id", "version", "by", "percent", "abort_over", "off")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    ABORT_OVER_FIELD_NUMBER: _ClassVar[int]
    OFF_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    by: str
    percent: float
    abort_over: float
    off: bool
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., by: _Optional[str] = ..., percent: _Optional[float] = ..., abort_over: _Optional[float] = ..., off: _Optional[bool] = ...) -> None: ...

class SetShadowRequest(_message.Message):
    __slots__ = ("model_id", "version", "by", "off")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    OFF_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    by: str
    off: bool
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., by: _Optional[str] = ..., off: _Optional[bool] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("model_id", "by")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    by: str
    def __init__(self, model_id: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class RetireRequest(_message.Message):
    __slots__ = ("model_id", "version", "by", "force")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    by: str
    force: bool
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., by: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class PinRequest(_message.Message):
    __slots__ = ("model_id", "version", "by")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    by: str
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("model_id", "by")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    by: str
    def __init__(self, model_id: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class GateRequest(_message.Message):
    __slots__ = ("model_id", "by", "policy", "rows", "changed", "tolerance", "reset")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    by: str
    policy: str
    rows: int
    changed: float
    tolerance: float
    reset: bool
    def __init__(self, model_id: _Optional[str] = ..., by: _Optional[str] = ..., policy: _Optional[str] = ..., rows: _Optional[int] = ..., changed: _Optional[float] = ..., tolerance: _Optional[float] = ..., reset: _Optional[bool] = ...) -> None: ...

class GateResponse(_message.Message):
    __slots__ = ("model_id", "policy", "rows", "changed", "tolerance", "is_own", "detail", "hindrance")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    IS_OWN_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    HINDRANCE_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    policy: str
    rows: int
    changed: float
    tolerance: float
    is_own: bool
    detail: str
    hindrance: str
    def __init__(self, model_id: _Optional[str] = ..., policy: _Optional[str] = ..., rows: _Optional[int] = ..., changed: _Optional[float] = ..., tolerance: _Optional[float] = ..., is_own: _Optional[bool] = ..., detail: _Optional[str] = ..., hindrance: _Optional[str] = ...) -> None: ...

class ActResponse(_message.Message):
    __slots__ = ("model_id", "version", "digest", "detail")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    version: str
    digest: str
    detail: str
    def __init__(self, model_id: _Optional[str] = ..., version: _Optional[str] = ..., digest: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...
