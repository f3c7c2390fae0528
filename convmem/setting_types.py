"""The types of the settings: how each value is read, and the sentence that says what is wrong with it.

A sentence follows the variable's name, so it begins with a verb: "is 'x'; use a or b". None of them repeats a secret.
"""

from __future__ import annotations

import keyword
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, PlainSerializer, SecretStr

from convmem.exceptions import ConfigurationError
from convmem.store_url import StoreURL, parse_store_url
from convmem.surroundings import PREFIX, parse_age, parse_duration, parse_size, shown, split_list

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

SECRETS = ("store", "secret_key")
"""The settings that may also come from a file, named by the variable with ``_FILE`` at its end."""
SHORTEST_KEY = 32
MAKE_A_KEY = "python -c 'import secrets; print(secrets.token_urlsafe(48))'"
KEY_IN_STORE = "store"
_FEWEST_CHARACTERS = 6
_TAKEN_HEADERS = ("authorization", "cookie", "convmem-visitor", "convmem-identity", "conversation-revision", "host", "idempotency-key")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 §5.6.2; a cookie's name is one too (RFC 6265 §4.1.1)
_SESSION_SOURCES = {"header": re.compile(""), "query:": _TOKEN, "path:": re.compile(r"/[^{}]*\{[A-Za-z_][A-Za-z0-9_]*\}[^{}]*")}
_ORIGIN = re.compile(r"https?://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_HOST = re.compile(r"(?!.{254})(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*")


def _text(value: object) -> str:
    """Return a text without the space around it."""
    if not isinstance(value, str):
        msg = f"is {shown(value)}; use a text"
        raise ValueError(msg)  # noqa: TRY004 - pydantic collects ValueErrors
    return value.strip()


def _choice(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _choices(value: object) -> tuple[object, ...]:
    chosen = tuple(_choice(item) for item in split_list(value))
    if len(set(chosen)) < len(chosen):
        msg = f"is {shown(value)}; name each choice once"
        raise ValueError(msg)
    return chosen


def _or_none(value: object) -> object:
    return None if _choice(value) in ("", "none") else value


def _duration_or_none(value: object) -> timedelta | None:
    return None if _or_none(value) is None else parse_duration(value)


def _retention(value: object) -> timedelta | None:
    """Read a duration with its unit: what a bare number is taken for decides whether a store is nearly emptied."""
    return None if _or_none(value) is None else parse_age(value)


def _store(value: object) -> StoreURL:
    if isinstance(value, StoreURL):
        return value
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if not isinstance(value, str):
        msg = f"is of type {type(value).__name__}; use a URL such as sqlite:///convmem.db"
        raise ValueError(msg)  # noqa: TRY004 - pydantic collects ValueErrors
    try:
        return parse_store_url(value)
    except ConfigurationError as error:
        raise ValueError(str(error).removeprefix("CONVMEM_STORE ")) from None


def _keys(value: object) -> tuple[SecretStr, ...]:
    keys = [item.get_secret_value() if isinstance(item, SecretStr) else item for item in split_list(value)]
    if keys == [KEY_IN_STORE]:
        return (SecretStr(KEY_IN_STORE),)
    for number, key in enumerate(keys, 1):
        if not isinstance(key, str):
            msg = f"has a key of type {type(key).__name__}; use texts"
            raise ValueError(msg)  # noqa: TRY004 - pydantic collects ValueErrors
        problem = _problem_of_key(key)
        if problem:
            msg = f"{problem} (key {number} of {len(keys)}, none is shown); make one with {MAKE_A_KEY}"
            raise ValueError(msg)
    return tuple(SecretStr(str(key)) for key in keys)


def _problem_of_key(key: str) -> str | None:
    if key == KEY_IN_STORE:
        return "has the word store beside a key, where one or the other can be used"
    size = len(key.encode("utf-8", "surrogateescape"))
    if size < SHORTEST_KEY:
        return f"has a key of {size} bytes, where {SHORTEST_KEY} are the least"
    if len(set(key)) < _FEWEST_CHARACTERS or (key + key).find(key, 1) < len(key) or "changeme" in re.sub(r"[^a-z]", "", key.lower()):
        return "has a key that can be guessed"
    return None


def _cookie_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        msg = f"is {shown(name)}; use letters, digits and - _ . only (a token of RFC 6265)"
        raise ValueError(msg)
    return name


def _cookie_path(path: str) -> str:
    if not re.fullmatch(r"/[!-:<-~]*", path):
        msg = f"is {shown(path)}; use a path that begins with / and holds no space and no semicolon"
        raise ValueError(msg)
    return path


def _cookie_domain(domain: str | None) -> str | None:
    if domain is None:
        return None
    host = domain.removeprefix(".").lower()
    if not _HOST.fullmatch(host):
        msg = f"is {shown(domain)}; use a host name such as example.com"
        raise ValueError(msg)
    return host


def _header(example: str) -> AfterValidator:
    """Check that a name can be a header's, and has no meaning of its own; the example has that of the setting."""

    def check(name: str) -> str:
        if not _TOKEN.fullmatch(name):
            msg = f"is {shown(name)}; use a header's name such as {example}"
            raise ValueError(msg)
        if name.lower() in _TAKEN_HEADERS and name.lower() != example.lower():
            msg = f"is {shown(name)}, which has a meaning of its own; use another name such as {example}"
            raise ValueError(msg)
        return name

    return AfterValidator(check)


def _session_sources(value: object) -> tuple[str, ...]:
    sources = tuple(_text(item) for item in split_list(value))
    for source in sources:
        kind, colon, rest = source.partition(":")
        form = _SESSION_SOURCES.get(kind + colon)
        if form is None or not form.fullmatch(rest):
            msg = f"holds {shown(source)}; use header, query:NAME, or path: and a pattern with one placeholder, as in path:/chats/{{id}}/*"
            raise ValueError(msg)
    if len(set(sources)) < len(sources):
        msg = f"is {shown(value)}; name each source once"
        raise ValueError(msg)
    return sources


def _origins(value: object) -> tuple[str, ...]:
    if _or_none(value) is None:
        return ()
    origins = tuple(_text(item).removesuffix("/").lower() for item in split_list(value))
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            msg = f"holds {shown(origin)}; use origins, a scheme and a host each, such as https://app.example"
            raise ValueError(msg)
    return tuple(origin.removesuffix(_DEFAULT_PORTS[origin.partition(":")[0]]) for origin in origins)


def _state_key(name: str) -> str:
    if name and (not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_")):
        msg = f"is {shown(name)}; use a name such as conversation, for request.state.conversation, or an empty text for none"
        raise ValueError(msg)
    return name


def _namespace(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", name):
        msg = f"is {shown(name)}; use 1 to 40 of A-Z a-z 0-9 _ and -, a letter first"
        raise ValueError(msg)
    return name


Store = Annotated[InstanceOf[StoreURL], BeforeValidator(_store), PlainSerializer(str)]
Keys = Annotated[tuple[SecretStr, ...], BeforeValidator(_keys)]
Owners = Annotated[tuple[Literal["user", "visitor"], ...], BeforeValidator(_choices)]
SessionSources = Annotated[tuple[str, ...], BeforeValidator(_session_sources)]
SessionHeader = Annotated[str, BeforeValidator(_text), _header("X-Session-ID")]
IdempotencyHeader = Annotated[str, BeforeValidator(_text), _header("Idempotency-Key")]
CookieName = Annotated[str, BeforeValidator(_text), AfterValidator(_cookie_name)]
CookiePath = Annotated[str, BeforeValidator(_text), AfterValidator(_cookie_path)]
CookieDomain = Annotated[str | None, BeforeValidator(_or_none), AfterValidator(_cookie_domain)]
Origins = Annotated[tuple[str, ...], BeforeValidator(_origins)]
StateKey = Annotated[str, BeforeValidator(_text), AfterValidator(_state_key)]
Namespace = Annotated[str, BeforeValidator(_text), AfterValidator(_namespace)]
Choice = BeforeValidator(_choice)
Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
OptionalDuration = Annotated[timedelta | None, BeforeValidator(_duration_or_none)]
OptionalCount = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_or_none)]
Retention = Annotated[timedelta | None, BeforeValidator(_retention)]
Size = Annotated[int, BeforeValidator(parse_size)]


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def sentence(problem: ErrorDetails) -> str:
    """Return what is wrong with one setting, and what to change."""
    context = problem.get("ctx", {})
    reason = context.get("error")
    if not problem["loc"]:
        return str(reason)
    name = str(problem["loc"][0])
    if not isinstance(reason, ValueError):
        value = "cannot be used" if name in SECRETS else f"is {shown(problem['input'])}"
        reason = f"{value}; {_advice(problem['type'], context, problem['msg'])}"
    text = f"{variable_of(name)} {reason}"
    return text if text.endswith((".", "?", "…")) else f"{text}."


def _advice(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind == "literal_error":
        return f"use {context['expected'].replace(chr(39), '')}"
    if kind == "greater_than_equal":
        return f"use {context['ge']} or more"
    if kind.startswith("int_"):
        return "use a whole number"
    if kind.startswith("bool_"):
        return "use on or off"
    return message
