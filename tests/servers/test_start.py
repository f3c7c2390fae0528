"""A wrong setting stops the server with a sentence that says what to change (P13)."""

import http.client
import json

import pytest

from tests.servers.commands import server
from tests.servers.processes import HOST, PATIENCE

WRONG = {"CONVMEM_TURN_WAIT": "soon", "CONVMEM_STORE": "memory://"}
SENTENCE = "CONVMEM_TURN_WAIT is 'soon'; use a duration such as 20s"


ALONE = [("uvicorn", []), ("hypercorn", ["--workers", "0"]), ("granian", [])]
"""One worker; hypercorn's without its supervisor, which (0.18) ends with 0 whatever its worker ended with."""


@pytest.mark.parametrize(("name", "options"), ALONE)
def test_a_wrong_setting_ends_the_server_with_a_sentence(name, options):
    """An exit code that a supervisor sees, and a line that a person understands."""
    process = server(name, "plain", WRONG, *options)
    try:
        process.start(wait=None)
        assert process.wait() != 0
        assert SENTENCE in process.log
    finally:
        process.close()


@pytest.mark.parametrize(("name", "options"), ALONE)
def test_a_store_that_cannot_be_used_ends_the_server_too(name, options, tmp_path):
    """Found at the start, not by the first user."""
    process = server(name, "plain", {"CONVMEM_STORE": f"sqlite:///{tmp_path}/nowhere/convmem.db"}, *options)
    try:
        process.start(wait=None)
        assert process.wait() != 0
        assert "nowhere does not exist; make it, or set another path" in process.log
    finally:
        process.close()


def test_hypercorn_under_its_supervisor_does_not_start_either():
    """Its exit code is its own; the sentence is there, and nothing listens."""
    process = server("hypercorn", "plain", WRONG)
    try:
        process.start(wait=None)
        process.wait()
        assert SENTENCE in process.log
    finally:
        process.close()


@pytest.mark.parametrize(("name", "options"), [("uvicorn", ["--lifespan", "off"]), ("daphne", [])])
def test_a_server_without_lifespan_answers_503_and_logs_the_sentence(name, options):
    """There is no other place to say it."""
    with server(name, "plain", WRONG, *options) as process:
        connection = http.client.HTTPConnection(HOST, process.port, timeout=PATIENCE)
        connection.request("POST", "/chat")
        answer = connection.getresponse()
        document = json.loads(answer.read())
        connection.close()
        assert (answer.status, document["code"]) == (503, "configuration")
        assert "CONVMEM_TURN_WAIT" not in json.dumps(document)
        assert SENTENCE in process.log


@pytest.mark.parametrize(("name", "options"), [("uvicorn", ["--lifespan", "off"]), ("daphne", [])])
def test_a_server_without_lifespan_serves_when_all_is_well(name, options, tmp_path):
    """The first request makes everything ready."""
    with server(name, "plain", {"CONVMEM_STORE": f"sqlite:///{tmp_path}/convmem.db"}, *options) as process:
        connection = http.client.HTTPConnection(HOST, process.port, timeout=PATIENCE)
        connection.request("POST", "/chat", body="hi")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["texts"]) == (200, ["hi"])
        connection.close()
