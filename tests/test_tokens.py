"""How many tokens a message is: an estimate that needs nothing, tiktoken where it is at hand without a download, or the app's counter."""

import shutil
import socket
import sys
from pathlib import Path

import llama_index.core
import pytest

from convmem import AudioPart, CounterFailed, FilePart, ImagePart, Message, TextPart, ToolCall
from convmem.config import tiktoken_cache
from convmem.tokens import Meter, default_counter, estimate

VOCABULARY = "fb374d419588a4632f3f557e76b4b70aebbca790"
SHIPPED = Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache"


@pytest.fixture(autouse=True)
def fresh():
    """Each test asks anew; no answer of one reaches another."""
    default_counter.cache_clear()
    yield
    default_counter.cache_clear()


@pytest.fixture
def no_network(monkeypatch):
    """A download would be a failure of the test, not a slow success."""

    def refuse(*args, **options):
        pytest.fail("something went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_estimate_counts_everything_a_model_reads():
    """Text, names, tool calls, media: what is left out of a count overflows the model."""
    assert estimate(Message.user("")) == 4
    assert estimate(Message.user("a" * 40)) == 14
    assert estimate(Message.user([TextPart(text="a" * 20), TextPart(text="b" * 20)])) == 14
    assert estimate(Message.user("漢字" * 10)) == 19
    assert estimate(Message.user("x", name="Ada Lovelace")) == 8
    call = Message.assistant("", tool_calls=[ToolCall(id="1", name="weather", arguments={"city": "Graz"})])
    assert estimate(call) == 4 + 8 + 2 + 4
    assert estimate(Message.user([ImagePart(url="https://a.example/b.png")])) == 1004
    assert estimate(Message.user([AudioPart(data=b"x" * 16_000, media_type="audio/mpeg")])) == 14
    assert estimate(Message.user([FilePart(url="https://a.example/b.pdf")])) == 1004
    assert estimate(Message.user("\ud800" * 4)) == 7


def test_tiktoken_counts_where_its_vocabulary_is_at_hand(no_network, caplog, monkeypatch):
    """The same as its own library says, plus what a message costs."""
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(SHIPPED))
    caplog.set_level("INFO", "convmem")
    counter = default_counter(SHIPPED)
    text = "Wer das liest, zählt Token: 日本語 too. \ud800"
    assert counter(Message.user(text)) == 4 + len(tiktoken.get_encoding("o200k_base").encode_ordinary(text))
    assert default_counter(SHIPPED) is counter
    assert [record.getMessage() for record in caplog.records] == ["tokens are counted by tiktoken's o200k_base"]


@pytest.mark.parametrize("there", ["nowhere", "empty", "wrong"])
def test_without_the_vocabulary_nothing_is_downloaded(no_network, caplog, tmp_path, there):
    """Tiktoken would fetch it in the middle of a request; the log names that once, with the line that helps."""
    if there == "wrong":
        (tmp_path / VOCABULARY).write_bytes(b"half a download")
    assert default_counter(None if there == "nowhere" else tmp_path) is estimate
    default_counter(None if there == "nowhere" else tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("tiktoken_vocabulary_missing: tokens are estimated")
    assert "TIKTOKEN_CACHE_DIR" in line


def test_without_tiktoken_tokens_are_estimated(monkeypatch, caplog):
    """It is no dependency."""
    caplog.set_level("INFO", "convmem")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert default_counter(SHIPPED) is estimate
    assert "tokens are estimated" in caplog.text


def test_the_vocabulary_is_looked_for_where_tiktoken_looks(monkeypatch, tmp_path):
    """Else ours would be found and tiktoken would download its own. Held against tiktoken itself, without a network."""
    from tiktoken.load import read_file_cached

    shutil.copy(SHIPPED / VOCABULARY, tmp_path)
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert tiktoken_cache() == Path(__import__("tempfile").gettempdir()) / "data-gym-cache"
    for name in ("DATA_GYM_CACHE_DIR", "TIKTOKEN_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
        assert tiktoken_cache() == tmp_path
        assert read_file_cached("https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken")
        monkeypatch.setenv(name, "")
        assert tiktoken_cache() is None


def test_each_message_is_counted_once():
    """A tokenizer is slow, and `messages` is read more than once in a request; the state of its turn is no part of a message."""
    asked = []

    def counter(message):
        asked.append(message.text)
        return 3

    meter, message = Meter(counter), Message.user("a")
    assert meter.total([message, message.in_state("interrupted"), Message.user("b")]) == 9
    assert asked == ["a", "b"]
    assert meter.of(message.model_copy(update={"content": "other"})) == 3
    assert asked == ["a", "b", "other"]


async def _coroutine(message):
    return 5


@pytest.mark.parametrize("answer", [-1, 1.5, "7", None, True])
def test_a_counter_that_returns_no_count_is_a_named_error(answer):
    """Not a window that is silently empty, or unlimited."""
    with pytest.raises(CounterFailed, match=r"returned a \w+; a counter is no coroutine, and returns a whole number from 0"):
        Meter(lambda message: answer).of(Message.user("a"))


def test_a_counter_that_raises_or_is_a_coroutine_is_a_named_error():
    """Its own error is the cause."""
    with pytest.raises(CounterFailed, match="raised ZeroDivisionError for a message of the role user") as caught:
        Meter(lambda message: 1 // 0).of(Message.user("secret"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "secret" not in str(caught.value)
    with pytest.raises(CounterFailed, match="returned a coroutine"):
        Meter(_coroutine).of(Message.user("a"))  # type: ignore[arg-type]
