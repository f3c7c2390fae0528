"""What a process finds around it: its platform, its variables, its secret files, and how their texts are read.

Everything here is handed its mapping; which one it is, `convmem.config` decides.
"""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr, TypeAdapter, ValidationError

from convmem.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

PREFIX = "CONVMEM_"
LONGEST_DURATION = timedelta(days=36500)

_PLATFORMS = {
    "KUBERNETES_SERVICE_HOST": "Kubernetes",
    "AWS_LAMBDA_FUNCTION_NAME": "AWS Lambda",
    "K_SERVICE": "Cloud Run",
    "VERCEL": "Vercel",
    "DYNO": "Heroku",
}
# Kubernetes puts these into every container beside a Service that is named "convmem", or "convmem-" and something.
_SERVICE_LINK = re.compile(r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT(?:_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)")

_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(ms|s|min|m|h|d|w)?")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"([0-9]{1,15})\s*(b|kb|mb|gb|kib|mib|gib)?", re.IGNORECASE)
_BYTES = {"b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


def platform_of(environ: Mapping[str, str]) -> str | None:
    """Return the platform on which every instance has a disk of its own; None on a machine that keeps its files."""
    return next((platform for variable, platform in _PLATFORMS.items() if environ.get(variable)), None)


def unknown_names(environ: Mapping[str, str], known: Collection[str]) -> tuple[str, ...]:
    """Return a sentence for every variable that looks like a setting and is none, with the nearest name."""
    sentences = []
    for name in sorted(environ):
        if name in known or not name.upper().startswith(PREFIX):
            continue
        end = name.upper().removeprefix(PREFIX)
        if _SERVICE_LINK.fullmatch(end):
            continue
        choices = [variable.removeprefix(PREFIX) for variable in known]
        without = end.removesuffix("_FILE")  # only secrets are read from files
        hint = without if without in choices else nearest(end, choices)
        shown = name if re.fullmatch(r"\w+", name, re.ASCII) else ascii(name)
        sentences.append(f"{shown} is not a setting and has no effect" + (f"; did you mean {PREFIX}{hint}?" if hint else "."))
    return tuple(sentences)


def read_secret_file(variable: str, path: str) -> str:
    """Return the text of a secret file without the newline at its end.

    Raises:
        ConfigurationError: It cannot be read, is empty, or is not UTF-8. The message never repeats its content.
    """
    problem = "is empty; write the secret into it"
    try:
        text = Path(path).read_bytes().decode().rstrip("\r\n")
    except OSError as error:
        problem = f"cannot be read ({error.strerror or type(error).__name__}); mount the file there, or unset the variable"
    except ValueError:  # also a path that holds a null character
        problem = "is not UTF-8 text; write the secret as text"
    else:
        if text:
            return text
    msg = f"{variable} names {path!r}, which {problem}."
    raise ConfigurationError(msg)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice most like a name; None when none is."""
    from difflib import get_close_matches  # here, for a worker whose settings are right never needs it

    return next(iter(get_close_matches(name, sorted(choices), n=1, cutoff=0.6)), None)


def split_list(value: object) -> tuple[object, ...]:
    """Return the parts of a comma-separated text, trimmed, without empty ones; a sequence as it is.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, str):
        return tuple(part for part in (piece.strip() for piece in value.split(",")) if part)
    if isinstance(value, list | tuple):
        return tuple(value)
    msg = f"is of type {type(value).__name__}; use a comma-separated text or a tuple of texts"
    raise ValueError(msg)


def parse_duration(value: object) -> timedelta:
    """Return a duration: seconds as a number, a number with ms, s, m (min), h, d or w, or ISO 8601 such as ``PT20S``.

    Raises:
        ValueError: It is none of these, not positive, or longer than a hundred years.
    """
    duration = _duration(value)
    if duration is None:
        msg = f"is {shown(value)}; use a duration such as 20s, 15m, 24h, 30d or PT20S"
        raise ValueError(msg)
    if not timedelta() < duration <= LONGEST_DURATION:
        msg = f"is {shown(value)}; use a duration above 0 and up to {LONGEST_DURATION.days}d"
        raise ValueError(msg)
    return duration


def parse_age(value: object) -> timedelta:
    """Return a duration after which something is deleted: as `parse_duration`, but a number needs its unit.

    Raises:
        ValueError: As there, or there is no unit.
    """
    age = parse_duration(value)
    if not isinstance(value, timedelta) and not re.search("[A-Za-z]", str(value)):
        msg = f"is {shown(value)}; say the unit, such as {str(value).strip()}d for days"
        raise ValueError(msg)
    return age


def _duration(value: object) -> timedelta | None:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _seconds(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    if match := _DURATION.fullmatch(text):
        return _seconds(float(match[1]) * _SECONDS[match[2] or "s"])
    return _iso_8601(text.upper())


def _seconds(seconds: float) -> timedelta | None:
    try:
        return timedelta(seconds=seconds)
    except (OverflowError, ValueError):  # too long; not a number
        return None


def _iso_8601(text: str) -> timedelta | None:
    if not text.removeprefix("-").startswith("P"):
        return None
    try:
        return TypeAdapter(timedelta).validate_python(text)
    except ValidationError:
        return None


def format_duration(duration: timedelta) -> str:
    """Return a duration as `parse_duration` reads it, in the largest unit that divides it."""
    micros = duration // timedelta(microseconds=1)
    for unit in ("d", "h", "m", "s"):
        whole, rest = divmod(micros, _SECONDS[unit] * 1_000_000)
        if not rest:
            return f"{whole}{unit}"
    return f"{micros // 1_000_000}.{micros % 1_000_000:06d}".rstrip("0") + "s"


def parse_size(value: object) -> int:
    """Return a number of bytes: a whole number, or one with B, kB, MB, GB (powers of 1000), KiB, MiB or GiB (of 1024).

    Raises:
        ValueError: It is none of these, or not positive.
    """
    size = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = int(match[1]) * _BYTES[(match[2] or "b").lower()]
    if size < 1:
        msg = f"is {shown(value)}; use a number of bytes above 0, such as 8388608, 8MiB or 8MB"
        raise ValueError(msg)
    return size


def format_size(size: int) -> str:
    """Return a number of bytes as `parse_size` reads it, in the largest unit of 1024 that divides it."""
    for unit in ("GiB", "MiB", "KiB"):
        whole, rest = divmod(size, _BYTES[unit.lower()])
        if not rest:
            return f"{whole}{unit}"
    return str(size)


def shown(value: object, longest: int = 60) -> str:
    """Return a value that is no secret as a sentence may repeat it: quoted, in ASCII, shortened."""
    text = ascii(value)
    return text if len(text) <= longest else f"{text[:longest]}…"
