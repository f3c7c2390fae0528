"""The reference pages name everything there is, with the facts the code has."""

import importlib.util
import re

import pytest

import convmem
from convmem import Conversation, ConvmemError, Settings
from convmem.stores.base import Outcome, Store

from .pages import DOCS

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


@pytest.mark.parametrize("error", [error for error in every_error() if error.__module__ == "convmem.exceptions"])
def test_every_error_is_explained(error):
    """Who looks up an error finds its status, its code, and what to do."""
    section = re.search(rf"^### {error.__name__}\n\n(.+?)(?=^##|\Z)", text_of("errors.md"), re.DOTALL | re.MULTILINE)
    assert section, f"errors.md has no section on {error.__name__}"
    assert section[1].startswith(f"{error.status} `{error.code}`")
    if error is not ConvmemError:
        words = section[1].replace("\n", " ")
        assert all(question in words for question in ("**What happened:**", "**Why:**", "**What to do:**"))
    retry = error.retry_after is not None or error.__name__ == "ConversationBusy"
    assert ("`Retry-After" in section[1].split(".")[0]) == retry


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
