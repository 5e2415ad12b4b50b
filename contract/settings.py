"""Every setting, typed and frozen; read once where a process starts and passed in from there.

Sources, the first that names a setting wins: command-line flags, MILLSTREAM_* variables, the TOML file that
MILLSTREAM_CONFIG names, the defaults here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ByteSize, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class SettingsError(Exception):
    """A setting that can't be used; the message names it, what came and what is expected."""


class Settings(BaseSettings):
    """Everything a process can be told."""

    model_config = SettingsConfigDict(env_prefix="MILLSTREAM_", frozen=True, extra="forbid", validate_default=True)

    state_dir: Path = Field(Path("millstream-state"), description="Where the databases, keys and logs stand.")
    redis_url: str = Field(
        "", repr=False, description="Redis or Valkey; empty: the embedded server of the state directory."
    )
    prefix: str = Field("ms", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="First part of every key.")
    log_format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    allocator: Literal["auto", "system"] = Field(
        "auto", description="auto: mimalloc where it is installed; system: the C library's."
    )

    listen: str = Field("127.0.0.1:50051", description="Where the gateway listens; port 0 takes a free one.")
    engine: Literal["auto", "grpcio", "native"] = Field("auto", description="The gateway's gRPC server.")
    default_deadline_s: Positive = Field(30.0, description="Deadline of a call that brings none, in seconds.")
    max_message_bytes: Count = Field(16 * 2**20, description="Largest gRPC message that is read.")
    max_rows: Count = Field(100_000, description="Most rows in one request.")
    max_waiting_rows: Count = Field(200_000, description="Rows waiting per model and lane before new ones are refused.")
    memory_limit_share: float = Field(
        0.8, gt=0, le=1, description="Share of maxmemory from which requests are refused."
    )
    drain_s: Positive = Field(10.0, description="Longest time a stopping process finishes what it has, in seconds.")

    workers: Count = Field(1, description="Worker processes in the pool.")
    batch_rows: Count = Field(256, description="Most rows in one predict call, but for a request larger than that.")
    slow_batch_factor: Count = Field(
        4, description="So many times as many, where calls are slow and more rows make each of them cheaper."
    )
    batch_target_ms: Positive = Field(5.0, description="How long one predict call should take, in milliseconds.")
    compile_models: bool = Field(
        True, description="Whether models are computed in a compiled form where that differs in no bit of any answer."
    )
    compile_tolerance: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Models whose compiled form may answer other numbers, and by how much: so much, and this part of "
        "what it was, such as churn=1e-7, with commas between; empty: in no bit. Labels never differ.",
    )
    big_model_bytes: ByteSize = Field(
        ByteSize(256 * 2**20),
        ge=1,
        description="A version whose artifacts have more bytes together is served by the first few workers of a pool "
        "alone, such as 256MiB.",
    )
    big_model_workers: Count = Field(1, description="How many workers of a pool serve such a version.")
    big_model_threads: int = Field(
        0,
        ge=0,
        description="How many threads compute it in each of them; 0: as many as there are cores, one without a slot.",
    )
    slot: int = Field(
        0,
        ge=0,
        description="A worker's place in its pool, from 1, as `up` and `worker --workers` set it; 0: none, and then "
        "it serves every model.",
    )
    lease_s: Positive = Field(3.0, description="How long an entry stays a silent worker's own, in seconds.")
    heartbeat_s: Positive = Field(0.5, description="How often a worker renews its leases, in seconds.")
    batch_limit_s: Positive = Field(30.0, description="Longest time for one batch; then the worker is replaced.")
    load_silence_s: Positive = Field(
        120.0,
        description="Longest time a worker is silent while it starts or loads a model; then it is replaced. While it "
        "serves that is batch_limit_s.",
    )
    max_crashes: Count = Field(2, description="Lone attempts that ended in a dead process before an entry is poison.")
    shadow_queue_rows: int = Field(
        4096, ge=0, description="Most rows of copies that a worker keeps for a shadow; the oldest are dropped."
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="The models a worker serves, with commas between them; empty: all."
    )

    reply_ttl_s: Count = Field(60, description="How long a reply is kept where the gateway made the id, in seconds.")
    reply_ttl_own_id_s: Count = Field(600, description="The same for a caller's own id.")
    reply_ttl_bulk_s: Count = Field(3600, description="The same for the bulk lane.")
    pending_ttl_s: Count = Field(86_400, description="How long a request that was never answered is remembered.")

    store_url: str = Field("", description="Where the models are: a folder, or azure://container[/prefix].")
    azure_connection_string: SecretStr = Field(SecretStr(""), description="Azure Storage connection string.")
    azure_account_url: str = Field("", description="Azure Storage account, with a SAS token, a key or an identity.")
    azure_sas_token: SecretStr = Field(SecretStr(""), description="SAS token for the account URL.")
    azure_account_key: SecretStr = Field(SecretStr(""), description="Account key for the account URL.")
    trusted_publishers: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Public keys whose owners may publish, or files of them, with commas between; "
        "empty: whoever may write to the store.",
    )
    poll_s: Positive = Field(300.0, description="How often the registry looks into the blob store, in seconds.")
    load_limit_s: Positive = Field(60.0, description="Longest time the workers have to load a new version, in seconds.")
    retire_after_s: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="Least time for which a version that was replaced stays loaded, in seconds.",
    )
    chunk_bytes: Count = Field(8 * 2**20, le=256 * 2**20, description="Size of an artifact's chunks in Redis.")
    trial_address: str = Field(
        "",
        description="Where versions are tried before workers load them, unix:/path; empty: by the registry itself.",
    )
    trial_seconds: Positive = Field(60.0, description="Longest time for the trial of a version, in seconds.")
    trial_memory: ByteSize = Field(
        ByteSize(4 * 2**30), ge=2**29, description="Most memory that the trial of a version may take, such as 4GiB."
    )
    event_log: str = Field(
        "",
        description="Where the registry asks the event log for recorded requests, to replay them on a version before "
        "it takes over: unix:/path or host:port; empty: nothing is replayed.",
    )
    gate_policy: Literal["off", "warn", "block"] = Field(
        "warn",
        description="What becomes of a version that would change more recorded answers than gate_changed: nothing is "
        "replayed, it takes over with a warning, or it is held back. This and the next three are for models without "
        "terms of their own.",
    )
    gate_rows: int = Field(1000, ge=1, le=10_000, description="Most recorded answers that are compared.")
    gate_changed: float = Field(0.05, ge=0, le=1, description="Share of them that may change.")
    gate_tolerance: float = Field(
        1e-6,
        ge=0,
        allow_inf_nan=False,
        description="By how much a number may differ without being another: so much, and this part of what it was.",
    )
    registry_listen: str = Field(
        "",
        description="Where the registry listens; empty: 127.0.0.1:50052. `up` takes a socket in the state directory.",
    )
    registry_public_key: Path | None = Field(
        None, description="Public key of the registry; default: in the state directory."
    )

    sink_listen: str = Field(
        "",
        description="Where the event log listens; empty: 127.0.0.1:50053. `up` takes a socket in the state directory.",
    )
    max_event_backlog: Count = Field(
        1_000_000,
        description="Entries in the models' event streams that the sink may be behind, of up to 512 events each.",
    )
    event_backlog_policy: Literal["refuse", "warn"] = Field(
        "refuse", description="What a gateway does above it: refuse new requests, or say so in its log each minute."
    )
    sink_batch_events: Count = Field(20_000, description="Most events in one transaction.")
    segment_seconds: Positive = Field(
        3600.0, description="How old a model's events get before they are sealed into a segment, in seconds."
    )
    segment_rows: Count = Field(2_000_000, description="Rows at which they are sealed before that.")
    event_retention_days: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="How long sealed segments are kept, in days; 0: for ever."
    )
    event_retention_bytes: ByteSize = Field(
        ByteSize(0),
        ge=0,
        description="Most bytes that the segments of all models have together, such as 100GiB; the oldest are removed. "
        "0: no limit.",
    )

    heads_url: str = Field(
        "",
        description="Where signed heads of the event log are kept: a folder, or azure://container[/prefix]; empty: "
        "nowhere. `up` takes the state directory.",
    )
    heads_every_s: Positive = Field(60.0, description="How often a model that moved gets a head, in seconds.")
    heads_key: Path | None = Field(
        None,
        description="Key that heads are signed with, made at its first use; default: in the state directory.",
    )
    events_url: str = Field(
        "",
        description="Where sealed segments of the event log are copied to: a folder, or azure://container[/prefix]; "
        "empty: nowhere.",
    )

    features_url: str = Field("", repr=False, description="Redis of the feature store; empty: the main one.")
    features_timeout_ms: Positive = Field(20.0, description="Longest wait for the feature store, in milliseconds.")
    features_file: Path | None = Field(None, description="Parquet or DuckDB snapshot to fall back on.")

    embedded_fsync: Literal["everysec", "always"] = Field("everysec", description="Embedded server's appendfsync.")
    embedded_maxmemory: str = Field(
        "", description="Embedded server's maxmemory, such as 2gb; empty: a quarter of RAM."
    )

    @model_validator(mode="after")
    def _lease_outlives_its_beats(self) -> Self:
        """One late heartbeat must not cost a living worker its entries."""
        if self.lease_s <= 3 * self.heartbeat_s:
            raise ValueError(f"lease_s is {self.lease_s:g}, expected more than 3 x heartbeat_s ({self.heartbeat_s:g})")
        return self

    @field_validator("models", "trusted_publishers", "compile_tolerance", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("compile_tolerance")
    @classmethod
    def _tolerable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        tolerances(value)
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if config := os.environ.get("MILLSTREAM_CONFIG"):
            sources += (TomlConfigSettingsSource(settings_cls, Path(config)),)
        return sources

    @classmethod
    def read(cls, **flags: Any) -> Settings:
        """The settings in force; a flag that is None was not given.

        Raises SettingsError naming every setting that can't be used.
        """
        known = {f"{cls.model_config.get('env_prefix', '')}{name}".upper() for name in cls.model_fields}
        own = {"MILLSTREAM_CONFIG", "MILLSTREAM_READY_FD"}
        stray = [name for name in os.environ if name.startswith("MILLSTREAM_") and name not in known | own]
        if stray:
            raise SettingsError(f"unknown setting {', '.join(sorted(stray))}; `millstream settings` lists them all")
        config = os.environ.get("MILLSTREAM_CONFIG")
        if config and not Path(config).is_file():
            raise SettingsError(f"MILLSTREAM_CONFIG names {config}, which is not a file")
        try:
            return cls(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            raise SettingsError("; ".join(_plainly(each) for each in error.errors(include_url=False))) from None
        except ValueError as error:
            raise SettingsError(f"{config or 'settings'}: {error}") from None

    def environment(self) -> dict[str, str]:
        """The same settings as MILLSTREAM_* variables, for a child process.

        Defaults too: a flag that says the default must win in the child over the variable or file it won over here.
        """
        out = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, SecretStr):
                text = value.get_secret_value()
            elif isinstance(value, tuple):
                text = ",".join(value)
            else:
                text = str(value)
            out[f"MILLSTREAM_{name.upper()}"] = text
        return out


def tolerances(pairs: tuple[str, ...]) -> dict[str, float]:
    """model_id -> the tolerance for its compiled form, of pairs such as churn=1e-7. Raises ValueError."""
    found = {}
    for pair in pairs:
        model_id, _, number = pair.partition("=")
        try:
            tolerance = float(number)
        except ValueError:
            tolerance = -1.0
        if not model_id.strip() or not 0 <= tolerance < 1:
            raise ValueError(f"expected a model and a number of at least 0 and below 1, as churn=1e-7; got {pair!r}")
        found[model_id.strip()] = tolerance
    return found


def _plainly(error: ErrorDetails) -> str:
    """One setting that can't be used, and what came, unless it may be a secret."""
    if not error["loc"]:  # settings that do not go together
        return error["msg"].removeprefix("Value error, ")
    name = str(error["loc"][0])
    field = Settings.model_fields.get(name)
    if field is None:
        return f"unknown setting {name}; `millstream settings` lists them all"
    text = error["msg"].replace("Input should", "should")
    if field.annotation is SecretStr or not field.repr:  # a URL may hold a password
        return f"{name}: {text}"
    return f"{name}: {text}, got {str(error['input'])[:80]!r}"
