"""Problem responses (RFC 9457): what the middleware itself answers when a conversation cannot be used."""

from __future__ import annotations

import json
from typing import Any

from convmem.exceptions import ConfigurationError, ConvmemError, SourceUnreadable, StoreUnavailable

PROBLEM_TYPES = "urn:convmem:problem:"


def problem(error: ConvmemError, headers: list[tuple[bytes, bytes]], *, head: bool = False) -> list[dict[str, Any]]:
    """Return the ASGI messages of the answer to an error.

    Args:
        error: It carries the status, the type and its facts.
        headers: To add: what identity has to say.
        head: Whether the request is a HEAD, whose answer has no body.
    """
    document: dict[str, Any] = {"type": f"{PROBLEM_TYPES}{error.code}", "title": error.title, "status": error.status, "code": error.code}
    if not isinstance(error, StoreUnavailable | SourceUnreadable | ConfigurationError):
        document["detail"] = str(error)
    document.update(error.facts())
    body = json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace")
    fields = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    if error.retry_after is not None:
        fields.append((b"retry-after", str(error.retry_after).encode()))
    return [
        {"type": "http.response.start", "status": error.status, "headers": fields},
        {"type": "http.response.body", "body": b"" if head else body},
    ]
