"""Settings and the choice of a store: the only place that reads the environment or picks a store by name."""

from __future__ import annotations

import logging
import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, cast

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from convmem import setting_types as types
from convmem.exceptions import ConfigurationError
from convmem.store_parameters import POSTGRES_OPTIONS, REDIS_SCHEMES
from convmem.store_url import Reach, StoreURL, parse_store_url
from convmem.surroundings import (
    PREFIX,
    format_duration,
    format_size,
    nearest,
    parse_duration,
    platform_of,
    read_secret_file,
    unknown_names,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from convmem.stores.base import Store

__all__ = ["SettingLine", "Settings", "StoreURL", "open_store", "parse_store_url"]

Source = Literal["default", "environment", "file", "argument"]
KeySource = Literal["environment", "store"]

_SIZES = ("max_message_bytes", "max_turn_bytes")
_REDIS_DEFAULTS = {
    "connect_timeout": "2s",
    "durability": "none",
    "replicas": "1",
    "replicas_timeout": "1s",
    "timeout": "5s",
    "unsafe": "warn",
}
_REDIS_SYNONYMS = {"socket_connect_timeout": "connect_timeout", "socket_timeout": "timeout"}  # as redis-py calls them
_NEIGHBOURS = ("REDIS_URL", "DATABASE_URL")

logger = logging.getLogger("convmem")


class SettingLine(NamedTuple):
    """One setting as `Settings.describe` shows it: nothing in it is secret."""

    variable: str
    value: str
    source: Source


class Settings(BaseSettings):
    """Every setting of convmem, checked, and frozen.

    ``Settings(turn_wait="30s")`` reads the environment too, as any pydantic-settings class does; a keyword beats it.
    Lists are comma separated. A variable that is set to nothing counts as unset, except ``CONVMEM_STATE_KEY``.

    Raises:
        ConfigurationError: Values cannot work: one sentence for each, with the variable's name and what to change.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, enable_decoding=False, extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=False
    )

    store: types.Store = Field(
        StoreURL("sqlite", "/convmem.db"),
        description="The URL of the store that keeps the conversations; relative SQLite paths start at the working directory.",
    )
    secret_key: types.Keys = Field(
        (),
        description="Keys that sign visitors' tokens, 32 bytes or more each: the first signs, all verify; the word store makes one there.",
    )
    identity: types.Owners = Field(
        ("user", "visitor"), description="Who a conversation may belong to, in the order in which they are asked for."
    )
    session_from: types.SessionSources = Field(
        ("header",), description="Where a request names its conversation: header, query:NAME or path:/PATTERN; two that differ are refused."
    )
    session_header: types.SessionHeader = Field("X-Session-ID", description="The request header that names the conversation.")
    idempotency_header: types.IdempotencyHeader = Field(
        "Idempotency-Key", description="The request header whose key names a turn, so that a client may repeat it and it is stored once."
    )
    trust_session_header: bool = Field(
        default=False,
        description="Whether a session id without an owner is its own owner: only for services behind a gateway of their own.",
    )
    client_ids: Annotated[Literal["own", "issued"], types.Choice] = Field(
        "own", description="Whether an owner may name new conversations (own), or only use ids that were handed out (issued)."
    )
    cookie_name: types.CookieName = Field("convmem", description="The name of the visitor's cookie.")
    cookie_secure: Annotated[Literal["auto", "always", "never"], types.Choice] = Field(
        "auto",
        description="Whether the visitor's cookie is sent over HTTPS only: auto where the request came so; its name follows the setting.",
    )
    cookie_samesite: Annotated[Literal["lax", "strict", "none"], types.Choice] = Field(
        "lax", description="Which requests from other sites carry the visitor's cookie; none also needs CONVMEM_COOKIE_SECURE=always."
    )
    cookie_max_age: types.Duration = Field(
        timedelta(days=30), description="How long a browser keeps the visitor's cookie after the last visit."
    )
    cookie_path: types.CookiePath = Field("/", description="The path below which the browser sends the visitor's cookie.")
    cookie_domain: types.CookieDomain = Field(
        None, description="The domain that shares the visitor's cookie with its subdomains; none keeps it on one host."
    )
    cookie_partitioned: bool = Field(
        default=False,
        description="Whether the cookie is kept apart for each site that embeds the app (CHIPS); needs CONVMEM_COOKIE_SECURE=always.",
    )
    websocket_origins: types.Origins = Field(
        (), description="Origins besides the app's own whose pages may open WebSockets to it, such as https://app.example."
    )
    ttl: types.OptionalDuration = Field(None, description="How long a conversation lives after its last turn; none means for ever.")
    retention: types.Retention = Field(
        None,
        description="How long `convmem prune` leaves a conversation after its last turn, with a unit such as 90d; none means for ever.",
    )
    window_turns: types.OptionalCount = Field(50, description="How many of the newest turns the model sees; none means all.")
    window_messages: types.OptionalCount = Field(
        None, description="How many of the newest messages the model sees, in whole turns; none means all."
    )
    window_tokens: types.OptionalCount = Field(
        None, description="How many tokens the model sees, in whole turns, the present one included; none means all."
    )
    concurrency: Annotated[Literal["wait", "reject"], types.Choice] = Field(
        "wait", description="What a turn does while another one of the same conversation runs: wait, or be rejected with a 409."
    )
    turn_wait: types.Duration = Field(
        timedelta(seconds=20), description="How long a turn waits for its conversation before a 409; keep it below the router's timeout."
    )
    lease: types.Duration = Field(
        timedelta(seconds=8), description="How long a worker that died blocks a conversation; turns may take longer, it is renewed."
    )
    turn_max: types.Duration = Field(timedelta(minutes=15), description="How long one turn may take at most.")
    max_waiting: int = Field(8, ge=0, description="How many turns may wait for one conversation in one worker.")
    on_store_error: Annotated[Literal["fail", "degrade"], types.Choice] = Field(
        "fail", description="What happens when the store is down: a 503 (fail), or an answer without memory that says so (degrade)."
    )
    max_message_bytes: types.Size = Field(8 * 1024**2, description="How large one message may be when it is stored.")
    max_turn_bytes: types.Size = Field(16 * 1024**2, description="How large all messages of one turn may be together.")
    max_turn_messages: int = Field(256, ge=1, description="How many messages one turn may append.")
    debug_headers: bool = Field(
        default=False, description="Whether responses say in headers which conversation was used and what was loaded and stored."
    )
    state_key: types.StateKey = Field(
        "conversation", description="The name of the conversation at request.state; an empty text puts nothing there."
    )
    namespace: types.Namespace = Field(
        "convmem",
        description="What is convmem's own in a shared server: the schema of the tables in PostgreSQL, the beginning of other keys.",
    )
    migrate: Annotated[Literal["auto", "check", "off"], types.Choice] = Field(
        "auto", description="What a worker does about missing tables: make them (auto), say so at the first call (check), not look (off)."
    )

    _sources: dict[str, Source]
    _platform: str | None
    _neighbour: tuple[str, StoreURL] | None
    _unknown: tuple[str, ...]

    def __init__(self, environ: Mapping[str, str] | None = None, /, **overrides: object) -> None:
        """Read the environment, or the mapping given instead of it, and let keywords beat it."""
        fields = type(self).model_fields
        for name in overrides.keys() - fields.keys():
            hint = nearest(name, fields)
            msg = f"Settings has no {name!r}; " + (f"did you mean {hint!r}?" if hint else f"its names are {', '.join(fields)}.")
            raise ConfigurationError(msg)
        environ = os.environ if environ is None else environ
        files = {name: text for name in types.SECRETS if name not in overrides and (text := _from_file(environ, name)) is not None}
        found = {**_from_variables(type(self), environ), **files}
        values: dict[str, Any] = {name: SecretStr(text) if name in types.SECRETS else text for name, text in found.items()} | overrides
        sentences = ""
        try:
            super().__init__(**values)
        except ValidationError as error:
            sentences = " ".join(types.sentence(problem) for problem in error.errors(include_url=False))
        if sentences:  # raised out here, where no context keeps the values
            raise ConfigurationError(sentences)
        self._sources = {name: _source(name, overrides, files, found) for name in fields}
        self._platform = platform_of(environ)
        self._neighbour = _neighbour(environ)
        self._unknown = unknown_names(
            environ, {types.variable_of(name) for name in fields} | {f"{types.variable_of(name)}_FILE" for name in types.SECRETS}
        )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **overrides: object) -> Self:
        """Return the settings of an environment, by default the process's own; keywords beat it."""
        return cls(environ, **overrides)

    @classmethod
    def at_hand(cls) -> Settings:
        """Return the settings of the process's environment as it is now, made anew only when a variable is another one than before.

        For what asks each time, such as `open_conversation`. Files of secrets are read each time.
        """
        return _newest.settings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return no source but the keywords: `__init__` has read the environment by then, and knows what came from where."""
        return (init_settings,)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problems = " ".join(self._contradictions())
        if problems:
            raise ValueError(problems)
        return self

    def _contradictions(self) -> Iterator[str]:
        turn_wait, lease, turn_max = (format_duration(each) for each in (self.turn_wait, self.lease, self.turn_max))
        if self.concurrency == "wait" and self.turn_wait <= self.lease:
            yield (
                f"CONVMEM_TURN_WAIT is {turn_wait} and CONVMEM_LEASE is {lease}: with CONVMEM_CONCURRENCY=wait a turn has to wait longer "
                "than a dead worker blocks; raise CONVMEM_TURN_WAIT or lower CONVMEM_LEASE."
            )
        if self.turn_max < self.lease:
            yield f"CONVMEM_TURN_MAX is {turn_max} and CONVMEM_LEASE is {lease}; raise CONVMEM_TURN_MAX or lower CONVMEM_LEASE."
        if "max_message_bytes" in self.model_fields_set and self.max_message_bytes > self.max_turn_bytes:
            yield "CONVMEM_MAX_MESSAGE_BYTES is more than CONVMEM_MAX_TURN_BYTES, which holds every message of a turn; raise the second."
        if self.idempotency_header.lower() == self.session_header.lower():
            yield "CONVMEM_IDEMPOTENCY_HEADER and CONVMEM_SESSION_HEADER are the same header; set one of them to another name."
        yield from self._cookie_contradictions()

    def _cookie_contradictions(self) -> Iterator[str]:
        name = self.cookie_name.lower()  # browsers compare the prefixes so (RFC 6265bis §5.7)
        if self.cookie_secure != "always":
            reasons = {
                "CONVMEM_COOKIE_SAMESITE is none": self.cookie_samesite == "none",
                "CONVMEM_COOKIE_PARTITIONED is on": self.cookie_partitioned,
                "CONVMEM_COOKIE_NAME begins with __Host- or __Secure-": name.startswith(("__host-", "__secure-")),
            }
            for reason in (reason for reason, applies in reasons.items() if applies):
                yield f"{reason}, which browsers accept only with Secure; set CONVMEM_COOKIE_SECURE=always."
        if name.startswith("__host-") and (self.cookie_domain or self.cookie_path != "/"):
            yield (
                "CONVMEM_COOKIE_NAME begins with __Host-, which allows no CONVMEM_COOKIE_DOMAIN and no CONVMEM_COOKIE_PATH but /; "
                "unset them, or leave the prefix out."
            )

    @property
    def store_url(self) -> StoreURL:
        """The store to open, an SQLite path made absolute.

        Raises:
            ConfigurationError: None was named on a platform where each instance would get a file of its own.
        """
        if self._sources["store"] == "default" and self._platform:
            have = f" For {self._neighbour[0]}, add the line CONVMEM_STORE=${self._neighbour[0]}." if self._neighbour else ""
            msg = (
                f"CONVMEM_STORE is unset on {self._platform}: each instance would have its own memory; set it to a store that all of them "
                f"share, or to sqlite:////PATH when one instance with a disk that stays is what you have.{have}"
            )
            raise ConfigurationError(msg)
        return self.store.absolute()

    def open_store(self) -> Store:
        """Return the store to use, without connecting to it; whoever calls this closes it.

        Raises:
            ConfigurationError: As `store_url`, and as the function of this name.
        """
        return open_store(self.store_url, namespace=self.namespace, migrate=self.migrate)

    @property
    def signing_keys(self) -> tuple[bytes, ...]:
        """The keys of the environment: the first signs, all verify; none when the key is in the store."""
        texts = [key.get_secret_value() for key in self.secret_key]
        return () if texts == [types.KEY_IN_STORE] else tuple(text.encode("utf-8", "surrogateescape") for text in texts)

    def key_source(self, reach: Reach | None = None) -> KeySource:
        """Return where the signing key comes from; `store` means it is created there once.

        Args:
            reach: That of the store in use, when the app brought one; None means the store of these settings.

        Raises:
            ConfigurationError: There is no key, and the store is shared over a network.
        """
        if self.signing_keys:
            return "environment"
        if not self.secret_key and (reach or self.store.reach) == "network":
            msg = (
                "CONVMEM_SECRET_KEY is unset and the store is shared over a network; set it to the same 32 bytes or more in every worker "
                f"(make them with {types.MAKE_A_KEY}), or to the word store to have a key created there."
            )
            raise ConfigurationError(msg)
        return "store"

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should know although it stops nothing: one sentence each, without secrets."""
        return self._notices(None)

    def announce(self, reach: Reach | None = None) -> None:
        """Log the notices (WARNING) and where the conversations are kept (INFO); for the start of a process.

        Args:
            reach: As in `key_source`; then nothing is said about ``CONVMEM_STORE``.

        Raises:
            ConfigurationError: As `store_url`.
        """
        for notice in self._notices(reach):
            logger.warning("%s", notice)
        if reach is None:
            unset = " (CONVMEM_STORE is unset)" if self._sources["store"] == "default" else ""
            logger.info("Conversations are kept in %s%s.", self.store_url, unset)

    def _notices(self, reach: Reach | None) -> tuple[str, ...]:
        notices = list(self._unknown)
        if reach is None and self._neighbour and self._sources["store"] == "default":
            notices.append(
                f"CONVMEM_STORE is unset, so conversations are kept in {self.store.absolute()}; to keep them where {self._neighbour[0]} "
                f"points, add the line CONVMEM_STORE=${self._neighbour[0]}."
            )
        if not self.secret_key and (reach or self.store.reach) != "network":
            lost = ", which a restart loses" if (reach or self.store.reach) == "process" else ""
            notices.append(
                f"CONVMEM_SECRET_KEY is unset: a signing key is created once in the store{lost}; "
                f"set CONVMEM_SECRET_KEY to one of your own, made with {types.MAKE_A_KEY}."
            )
        return tuple(notices)

    def describe(self) -> list[SettingLine]:
        """Return every setting as text, with where it came from; secrets are hidden."""
        return [SettingLine(types.variable_of(name), self._value_text(name), source) for name, source in self._sources.items()]

    def _value_text(self, name: str) -> str:
        value = getattr(self, name)
        if name == "secret_key":
            keys = len(self.signing_keys)
            return f"{keys} hidden" if keys else (types.KEY_IN_STORE if value else "none")
        if name in _SIZES:
            return format_size(value)
        if isinstance(value, StoreURL):
            return str(value.absolute())
        return format_duration(value) if isinstance(value, timedelta) else _plain_text(value)


class _Read(NamedTuple):
    """The settings of an environment, and what they were read from; a file may say something else by now."""

    variables: Mapping[object, object]
    with_files: bool
    settings: Settings


class _Newest:
    """The settings of the process's environment as they were read last."""

    _read: _Read | None = None

    def settings(self) -> Settings:
        """Return them, the same object for the same variables and files.

        The variables are compared as the interpreter keeps them: to decode thirty of them takes longer than a turn. Where they cannot
        be seen so, because something else stands in the place of ``os.environ``, they are compared decoded.
        """
        variables = cast("Mapping[object, object]", getattr(os.environ, "_data", os.environ))
        read = self._read
        if read is not None and read.variables == variables and not read.with_files:
            return read.settings
        before = dict(variables)
        with_files = any(os.environ.get(f"{types.variable_of(name)}_FILE") for name in types.SECRETS)
        settings = Settings.from_environment()
        if read is not None and read.variables == before and read.settings == settings:
            return read.settings
        self._read = _Read(before, with_files, settings)
        return settings


_newest = _Newest()


def open_store(url: str | StoreURL, *, namespace: str = "convmem", migrate: Literal["auto", "check", "off"] = "auto") -> Store:
    """Return the store a URL names, without connecting to it; whoever calls this closes it.

    Args:
        url: As `parse_store_url` reads it. A relative SQLite path starts at the working directory of this moment.
        namespace: What is convmem's own in a server shared with others, PostgreSQL's schema; a file is not shared.
        migrate: What is done about missing tables of PostgreSQL; see `PostgresStore`.

    Raises:
        ConfigurationError: The URL names no store, or one this version does not have, or its driver is not installed.
    """
    parsed = (url if isinstance(url, StoreURL) else parse_store_url(url)).absolute()
    if parsed.scheme == "memory":
        from convmem.stores.memory import MemoryStore

        return MemoryStore()
    if parsed.scheme == "sqlite":
        from convmem.stores.sqlite import SQLiteStore

        options = parsed.options
        return SQLiteStore(
            parsed.path,
            synchronous=cast("Literal['full', 'normal', 'extra']", options.get("synchronous", "full")),
            busy_timeout=parse_duration(options.get("busy_timeout", "5s")),
            mode=cast("Literal['rwc', 'rw']", options.get("mode", "rwc")),
        )
    if parsed.scheme == "postgresql":
        return _postgres(parsed, namespace, migrate)
    assert parsed.scheme in REDIS_SCHEMES
    return _redis(parsed, namespace)


def tiktoken_cache() -> Path | None:
    """Return where tiktoken looks for vocabularies before it downloads them, as its own loader finds that; None: nowhere."""
    named = next((os.environ[name] for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR") if name in os.environ), None)
    if named is None:
        return Path(tempfile.gettempdir()) / "data-gym-cache"
    return Path(named) if named else None


def _redis(url: StoreURL, namespace: str) -> Store:
    given = {_REDIS_SYNONYMS.get(name, name): value for name, value in url.options.items()}
    own = {name: given.get(name, default) for name, default in _REDIS_DEFAULTS.items()}
    connect, reply, replicas_timeout = (parse_duration(own[name]) for name in ("connect_timeout", "timeout", "replicas_timeout"))
    driver = {name: value for name, value in given.items() if name not in own}
    try:
        from convmem.stores.redis import RedisStore
        from convmem.stores.redis_address import wire_at
        from convmem.stores.redis_wire import Patience

        wire = wire_at(url.scheme, url.rest, driver, Patience(connect.total_seconds(), reply.total_seconds()))
    except ImportError as error:
        raise ConfigurationError(str(error)) from error

    return RedisStore(
        wire,
        namespace=namespace,
        durability=cast("Literal['none', 'replicas']", own["durability"]),
        replicas=int(own["replicas"]),
        replicas_timeout=replicas_timeout,
        unsafe=cast("Literal['warn', 'refuse', 'allow']", own["unsafe"]),
    )


def _postgres(url: StoreURL, schema: str, migrate: Literal["auto", "check", "off"]) -> Store:
    try:
        from convmem.stores.postgres import PostgresStore
    except ModuleNotFoundError as error:
        msg = 'PostgresStore needs: pip install "convmem[postgres]"'
        raise ConfigurationError(msg) from error

    options = url.options
    return PostgresStore.at(
        url.without(*POSTGRES_OPTIONS).secret_text,
        schema=schema,
        migrate=migrate,
        timeout=parse_duration(options.get("timeout", "5s")),
        unsafe=cast("Literal['warn', 'refuse', 'allow']", options.get("unsafe", "warn")),
        pool_max=int(options.get("pool_max", "10")),
        pool_min=int(options.get("pool_min", "1")),
        statement_cache_size=int(options["statement_cache_size"]) if "statement_cache_size" in options else None,
    )


def _plain_text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        value = ",".join(value) or None
    return "none" if value is None else str(value)


def _from_variables(settings: type[Settings], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the raw values by setting, read by pydantic-settings from the given mapping, names in capitals only."""
    source = EnvSettingsSource(settings)
    present = {name: text.strip() for name, text in environ.items() if name.startswith(PREFIX) and name.isupper()}
    source.env_vars = {name.lower(): text for name, text in present.items() if text or name == types.variable_of("state_key")}
    return source()


def _from_file(environ: Mapping[str, str], name: str) -> str | None:
    variable = types.variable_of(name)
    path = environ.get(f"{variable}_FILE", "").strip()
    if not path:
        return None
    if environ.get(variable, "").strip():
        msg = f"{variable} and {variable}_FILE are both set; unset one of them."
        raise ConfigurationError(msg)
    return read_secret_file(f"{variable}_FILE", path)


def _source(name: str, *places: Mapping[str, object]) -> Source:
    """Return the first of overrides, files and variables that has the setting."""
    names: tuple[Source, ...] = ("argument", "file", "environment")
    return next((source for source, place in zip(names, places, strict=True) if name in place), "default")


def _neighbour(environ: Mapping[str, str]) -> tuple[str, StoreURL] | None:
    for variable in _NEIGHBOURS:
        try:
            url = parse_store_url(environ.get(variable, ""))
        except ConfigurationError:  # another kind of database
            continue
        if url.reach == "network":
            return variable, url
    return None
