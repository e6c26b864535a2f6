"""The settings: one typed object, from defaults, file, environment and flags, in that order.

The file is `llmagentos.toml` in the working directory or the one that `LLMAGENTOS_SETTINGS` names; an
environment variable is the field's name in capitals behind `LLMAGENTOS_`; flags are what a command passes
to :meth:`Settings.load`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from llmagentos.streams.errors import SettingsError

__all__ = ["ModelSettings", "Settings"]


def _default_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "llmagentos"


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmagentos"


class ModelSettings(BaseModel):
    """One named model: `[models.NAME]` in llmagentos.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["openai", "transformers", "scripted"] = Field(
        "openai",
        description="`openai`: an endpoint that speaks its protocol; `transformers`: a folder, run in the worker;"
        " `scripted`: answers from a file, for tests.",
    )
    model: str = Field("", description="What the provider calls it; empty: as it is named here.")
    base_url: str = Field("", description="Of the endpoint, for example http://127.0.0.1:8000/v1; empty: OpenAI's.")
    key_env: str = Field("", description="The environment variable that has the endpoint's key; empty: it needs none.")
    path: Path | None = Field(None, description="The folder of a local model: config, tokenizer and safetensors.")
    script: Path | None = Field(None, description="The file of answers of a scripted model.")
    window: int = Field(0, ge=0, description="Tokens that question and answer may have together; 0: not known.")
    max_tokens: int = Field(0, ge=0, description="Tokens that one answer may have; 0: as many as the model likes.")
    price_in: float = Field(0.0, ge=0, description="US dollars for a million tokens of question.")
    price_out: float = Field(0.0, ge=0, description="US dollars for a million tokens of answer.")
    timeout_s: float = Field(
        60.0, gt=0, description="How long a model may be silent, before its first word or between two; then it is slow."
    )
    retries: int = Field(
        2, ge=0, le=100, description="How often a model that is down, slow or overloaded is asked again."
    )
    retry_after_max_s: float = Field(
        60.0, gt=0, description="The longest pause that an endpoint may ask for; where it wants more, it has failed."
    )
    cache_s: float = Field(
        0.0, ge=0, description="How long an answer is given again where the same tenant asks the same; 0: never."
    )
    fallback: tuple[str, ...] = Field((), description="Models that are asked, in this order, where it has failed.")


class Settings(BaseSettings):
    """Everything that can be set. Build it with :meth:`load`; times are in the unit that the name ends in."""

    model_config = SettingsConfigDict(
        env_prefix="LLMAGENTOS_", extra="forbid", frozen=True, toml_file=None, env_ignore_empty=True
    )

    home: Path = Field(
        default_factory=_default_home, description="Data folder of the local node, and of local deployments."
    )
    cache: Path = Field(default_factory=_default_cache, description="Downloaded jars; safe to delete.")
    kafka_jars: Path | None = Field(None, description="Folder with the broker's jars, where none can be downloaded.")

    brokers: str = Field("", description="bootstrap.servers of a Kafka cluster; empty: the local node's.")
    redis: str = Field("", description="redis:// or rediss:// URL; empty: the local node's.")
    registry: str = Field("", description="URL of a Confluent-compatible schema registry; empty: the log-backed one.")
    prefix: str = Field("llmagentos.", description="In front of every topic's name.", pattern=r"^[A-Za-z0-9._-]*$")

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str = Field("", description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER.")
    sasl_username: str = ""
    sasl_password: SecretStr = SecretStr("")
    ssl_ca: Path | None = Field(None, description="PEM file of the certificate authority.")
    ssl_certificate: Path | None = Field(None, description="PEM file of the client's certificate.")
    ssl_key: Path | None = Field(None, description="PEM file of the client's key.")
    kafka: dict[str, str] = Field(
        default_factory=dict, description="Further librdkafka properties for every client, as JSON."
    )

    partitions: int = Field(8, ge=1, le=10_000, description="Of a topic at its birth; fixed from then on.")
    replication: int = Field(0, ge=0, le=32_767, description="0: three, or the brokers there are if fewer.")

    #: docs/decisions/0057-linger.md has the measurement.
    linger_ms: float = Field(
        1.0, ge=0, description="How long a producer waits to fill a batch; under load they fill by themselves."
    )
    delivery_timeout_s: float = Field(
        120.0,
        gt=0,
        description="After this an unacknowledged send is an error (Kafka's delivery.timeout.ms).",
    )
    session_timeout_ms: int = Field(
        1_000,
        ge=500,
        description="A silent worker loses its partitions after this, or after the broker's minimum if that is longer.",
    )
    heartbeat_interval_ms: int = Field(200, ge=100, description="Must be under a third of the session timeout.")
    commit_interval_ms: int = Field(200, ge=10, description="How often finished offsets are committed.")
    drain_timeout_s: float = Field(
        10.0, gt=0, description="What a worker in a rebalance, or told to stop, waits for its handlers."
    )

    max_in_flight: int = Field(1_000, ge=1, description="Messages being handled at once, per worker.")
    max_in_flight_bytes: int = Field(
        64 * 1024 * 1024, ge=1_048_576, description="Bytes of messages taken and not finished, per worker."
    )
    max_waiting: int = Field(
        10_000, ge=1, description="Handlers of one agent that wait for answers at once, per worker; beside the above."
    )
    dedup_window: int = Field(
        20_000,
        ge=1,
        description="Finished messages of each inbox partition whose ids are known, so that a duplicate is dropped.",
    )
    suspend_after_s: float = Field(
        5.0, gt=0, description="A handler that has waited so long leaves the worker's memory until it can go on."
    )
    cancel_grace_s: float = Field(
        30.0, gt=0, description="What a handler that is cancelled has for its cleanup; then it is given up."
    )
    ask_timeout_s: float = Field(60.0, gt=0, description="Deadline of a question that brings none of its own.")
    max_message_bytes: int = Field(
        1_000_000, ge=1_024, description="Largest record (Kafka's default limit is 1,048,588 with overhead)."
    )

    blobs: str = Field(
        "",
        description="Where results of steps go that are too large for a journal record, as an fsspec URL (`s3://...`);"
        " empty: for a local node the folder `blobs` in `home`, else nowhere.",
    )
    max_result_bytes: int = Field(32 * 1024 * 1024, ge=1_024, description="Largest result of a step.")

    tool_policy: dict[str, Literal["allow", "deny"]] = Field(
        default_factory=dict,
        description="Which tools may be called, as JSON: by `TOOL`, `AGENT/TOOL` or `TENANT/AGENT/TOOL`, with `*` for"
        " any; the first that fits counts, and what none fits is allowed.",
    )

    max_memory_bytes: int = Field(
        262_144, ge=1_024, description="Largest memory of one conversation; at most half of `max_message_bytes`."
    )

    models: dict[str, ModelSettings] = Field(
        default_factory=dict,
        description="Models by name: tables `[models.NAME]` of the file, or JSON; see docs/howto/models.md.",
    )
    model_memory_bytes: int = Field(
        0, ge=0, description="Weights that local models may have in memory together, per worker; 0: no bound."
    )
    tenant_budget: float = Field(
        0.0, ge=0, description="US dollars that a tenant may spend on models each day (UTC); 0: no bound."
    )
    tenant_budgets: dict[str, float] = Field(
        default_factory=dict, description="Other daily bounds, by tenant, as JSON; 0: no bound."
    )
    conversation_budget: float = Field(
        0.0, ge=0, description="US dollars that a conversation, with all that sprang from it, may spend on models."
    )
    model: str = Field("", description="The model of `ctx.llm.chat()` that names none; empty: the only one there is.")

    knowledge: Path | None = Field(None, description="File of the knowledge store; empty: `knowledge.db` in `home`.")
    embeddings_url: str = Field(
        "",
        description="Endpoint of embeddings that speaks OpenAI's protocol, up to its version (`https://.../v1`);"
        " empty: all-MiniLM-L6-v2, on this machine.",
    )
    embeddings_model: str = Field("", description="Which of the endpoint's models.")
    embeddings_key: SecretStr = Field(SecretStr(""), description="The endpoint's key, where it asks for one.")
    #: A book of a thousand pages as text has 3 MB; as a PDF with pictures often ten times that.
    max_document_bytes: int = Field(
        64 * 1024 * 1024, ge=1_024, description="Largest document that is taken into the knowledge store."
    )

    gateway_timeout_s: float = Field(
        300.0, gt=0, description="What a gateway's client waits for an answer; the agent works on beyond it."
    )
    #: A long dialogue is under 1 MB as text; what is over a record's limit is refused anyway.
    gateway_max_body_bytes: int = Field(4 * 1024 * 1024, ge=1_024, description="Largest request to a gateway.")

    faults: str = Field(
        "", description="Faults on purpose, for tests: `fail=0.01,delay=0.1:250ms`; see docs/howto/faults.md."
    )

    @model_validator(mode="after")
    def _models_are_there(self) -> Settings:
        for name, model in self.models.items():
            for other in model.fallback:
                if other not in self.models:
                    raise ValueError(f"models.{name}.fallback names {other!r}, which is no model")
        if self.model and self.model not in self.models:
            raise ValueError(f"model = {self.model!r}: there is no models.{self.model}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = Path(os.environ.get("LLMAGENTOS_SETTINGS") or "llmagentos.toml")
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        if path.is_file():
            sources += (TomlConfigSettingsSource(settings_cls, toml_file=path),)
        return sources

    @classmethod
    def load(cls, **flags: Any) -> Settings:
        """Read the settings; *flags* that are None count as not given.

        Raises:
            SettingsError: naming each wrong field, its value and what it takes.
        """
        named = os.environ.get("LLMAGENTOS_SETTINGS")
        if named and not Path(named).is_file():
            raise SettingsError(
                f"LLMAGENTOS_SETTINGS names {named!r}, which is not a file",
                fix="point it at a TOML file, or unset it",
            )
        try:
            return cls(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(str(part) for part in e['loc']) or 'settings'} = {e.get('input')!r}: {e['msg']}"
                for e in error.errors()
            )
            raise SettingsError(
                f"wrong settings: {wrong}",
                fix="correct the flag, the LLMAGENTOS_* variable or llmagentos.toml (docs/reference/settings.md)",
            ) from None
        except ValueError as error:  # a file that is not TOML, a variable that is not JSON
            raise SettingsError(f"unreadable settings: {error}", fix="correct the file or the variable") from error

    def topic(self, name: str) -> str:
        """The full topic name of *name*, for example ``agent.greeter``."""
        return self.prefix + name

    def security(self) -> dict[str, str]:
        """The librdkafka properties of authentication and encryption, and the free ones of `kafka`."""
        properties = {"security.protocol": self.security_protocol}
        optional: dict[str, object] = {
            "sasl.mechanisms": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password.get_secret_value(),
            "ssl.ca.location": self.ssl_ca,
            "ssl.certificate.location": self.ssl_certificate,
            "ssl.key.location": self.ssl_key,
        }
        properties |= {name: str(value) for name, value in optional.items() if value}
        return properties | self.kafka
