"""An app that does not use its conversation is the same app with the middleware around it."""

import json
import subprocess

import pytest

from tests.frameworks.catalogue import FRAMEWORKS
from tests.frameworks.plain import REQUESTS
from tests.servers.commands import ROOT
from tests.servers.processes import PYTHON, clean_environment


@pytest.mark.parametrize("name", [framework.name for framework in FRAMEWORKS])
def test_status_headers_body_and_the_order_of_events_are_the_apps_own(name):
    """Byte for byte, whatever a framework sends: JSON, HEAD, no body, cookies, a stream as it is made, errors, what is not found."""
    command = [PYTHON, "-m", "tests.frameworks.plain", name]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])  # a bridge lets Flask log to standard output
    for request, alone, wrapped in zip(REQUESTS, seen["alone"], seen["wrapped"], strict=True):
        assert wrapped == alone, request
    assert {event[1] for events in seen["alone"] for event in events if event[0] == "http.response.start"} >= {200, 418, 204, 404}
    stream = [event if isinstance(event, str) else event[3] for event in seen["alone"][5]]
    assert "".join(text for text in stream if not text.startswith("made")) == "one two three"
    if name != "flask":  # its pieces are made in another thread
        assert [text for text in stream if text] == ["made one ", "one ", "made two ", "two ", "made three", "three"]
