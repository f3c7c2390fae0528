"""The reference pages name everything there is, with the facts the code has."""

import importlib.util
import json
import re

import pytest

import convmem
from convmem import Conversation, ConvmemError, Settings
from convmem.stores.base import Outcome, Store
from tests.servers.commands import SERVERS

from .pages import DOCS, blocks_of

PAGES = DOCS / "reference"


def every_error(base=ConvmemError):
    return [base, *(error for child in base.__subclasses__() for error in every_error(child))]


def text_of(name):
    return (PAGES / name).read_text(encoding="utf-8")


def test_the_page_of_settings_is_current(monkeypatch):
    """It is generated; a new setting is on it, or this fails: ``python docs/generate_settings.py``."""
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("generate_settings", DOCS / "generate_settings.py")
    assert spec
    assert spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert text_of("settings.md") == generator.page()


ERRORS = [error for error in every_error() if error.__module__ == "convmem.exceptions"]
NEVER_AN_ANSWER = {
    "convmem_error": "the base of all others is not raised itself",
    "no_conversation": "without a middleware on the path nobody is there to answer",
    "visitor_too_late": "the response has begun",
}


@pytest.mark.parametrize("error", ERRORS)
def test_every_error_has_a_page(error):
    """Who looks up the type of a problem finds what happened, why, what to do, and the answer as it is sent; it is run with the page."""
    page = PAGES / "errors" / f"{error.code}.md"
    text = page.read_text(encoding="utf-8")
    retry = error.retry_after is not None or error is convmem.ConversationBusy
    facts = text.splitlines()[2]
    assert text.startswith(f"# {error.code}\n\n**{error.status}** · `convmem.{error.__name__}` · type `urn:convmem:problem:{error.code}`")
    assert ("`Retry-After" in facts) == retry
    assert re.findall("^## (.+)$", text, re.MULTILINE)[:3] == ["What happened", "Why", "What to do"]
    answers = [json.loads(block.code) for block in blocks_of(page) if block.title == "answer.json"]
    assert [answer["code"] for answer in answers] == ([] if error.code in NEVER_AN_ANSWER else [error.code])


def test_every_error_is_in_the_table():
    """The list of all, with the status a client can count on."""
    text = text_of("errors.md")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| \[(\w+)\]\(errors/(\w+)\.md\) \|", text, re.MULTILINE)
    assert sorted(rows) == sorted((error.__name__, str(error.status), error.code, error.code) for error in ERRORS[1:])


def test_no_page_explains_an_error_that_is_gone():
    """A page that nothing leads to any more misleads."""
    assert {page.stem for page in (PAGES / "errors").iterdir()} == {error.code for error in ERRORS}


def test_every_public_name_is_on_the_page():
    """A name that is not documented is not public."""
    words = set(re.findall(r"`(\w+)", text_of("api.md")))
    assert set(convmem.__all__) <= words


def test_every_member_of_a_conversation_is_on_the_page():
    """What a handler may use is listed."""
    section = text_of("api.md").split("## Conversation\n")[1].split("## Messages")[0]
    words = set(re.findall(r"\w+", section))
    public = {name for name in vars(Conversation) if not name.startswith("_")}
    assert public <= words


def test_every_method_of_a_store_and_every_outcome_is_on_the_page():
    """The contract in words leaves nothing out."""
    page = text_of("store.md")
    assert all(f"`{name}`" in page for name in Store.__abstractmethods__)
    assert all(f"`{outcome}`" in page for outcome in Outcome)


def test_every_setting_named_anywhere_exists():
    """A variable that was renamed lives on in prose."""
    known = {f"CONVMEM_{name.upper()}" for name in Settings.model_fields} | {"CONVMEM_STORE_FILE", "CONVMEM_SECRET_KEY_FILE"}
    for page in [DOCS.parent / "README.md", *DOCS.rglob("*.md")]:
        named = set(re.findall(r"CONVMEM_[A-Z_]+[A-Z]", page.read_text(encoding="utf-8")))
        assert named <= known, page


def test_the_readme_names_the_servers_that_are_tested():
    """What works with what is a claim; for servers, the table beside it is the one the tests start them from."""
    row = next(line for line in (DOCS.parent / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| servers |"))
    assert {name for name in SERVERS if name in row} == set(SERVERS)
