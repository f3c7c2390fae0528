"""What can be constructed comes back exactly, and what cannot be stored is refused with the name of the field."""

import copy
import json
import math
import pickle
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings, strategies as st
from pydantic import ValidationError

from convmem import AudioPart, Citation, FilePart, ImagePart, Message, ReasoningPart, TextPart, ToolCall
from convmem.exceptions import InvalidMessage
from convmem.messages import UnknownPart, decode_body, decode_messages, encode_message, encode_messages

text = st.text(st.characters(codec=None), max_size=20) | st.sampled_from(
    ["", "\0", "\ud83d", "\ude00\ud83d", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "a\udc80b", "$text", "\u2028"]
)
halves = st.sampled_from(["\ud83d\ude00", "\ud83d" + "\ude00", "x\ud83d\ude00\ud83d"])
names = text | halves | st.sampled_from(["$bytes", "$float", "$text", "$object", "$", "$new", "type"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**400)
    | st.floats(allow_nan=False)
    | text
    | halves
    | st.binary(max_size=20)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12)
objects = st.dictionaries(names, values, max_size=4)
parts = st.one_of(
    st.builds(TextPart, text=text | halves, citations=st.lists(st.builds(Citation, quote=st.none() | text), max_size=2)),
    st.builds(ImagePart, url=text),
    st.builds(AudioPart, data=st.binary(max_size=50), media_type=text),
    st.builds(FilePart, url=text, name=st.none() | text),
    st.builds(ReasoningPart, text=text, signature=st.none() | text),
    st.builds(UnknownPart, type=text, fields=objects.filter(lambda fields: all(_storable(name) for name in fields))),
)


def _storable(name: str) -> bool:
    return name != "type" and name.encode(errors="replace").decode() == name


zones = st.timezones() | st.just(UTC) | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
moments = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=zones)  # noqa: DTZ001 - hypothesis adds the zone
said = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=text | halves | st.lists(parts, max_size=3),
    tool_calls=st.lists(st.builds(ToolCall, id=text, name=text, arguments=objects | text), max_size=2),
    tool_call_id=st.none() | text,
    name=st.none() | text,
    id=text,
    created_at=moments,
    metadata=objects,
    extras=objects,
)
messages = said | st.builds(lambda message: message.model_copy(update={"id": message.created_at.isoformat()}), said)


def back(*sent: Message) -> list[Message]:
    """Store and load."""
    return decode_messages(encode_messages(map(encode_message, sent)))


@given(messages)
def test_every_message_comes_back_equal(message):
    """P11: with lone surrogates, NUL, bytes, big integers, infinities, and keys that look like our own."""
    (again,) = back(message)
    assert again == message
    assert again.model_dump(exclude={"created_at"}) == message.model_dump(exclude={"created_at"})
    assert _types(again.metadata) == _types(message.metadata)


@given(st.lists(messages, max_size=4))
def test_several_come_back_in_order(sent):
    """An entry holds a turn."""
    assert back(*sent) == sent


@given(messages)
def test_a_message_is_read_the_same_whatever_stands_beside_it(message):
    """A body of plain messages is read by pydantic at once, any other one by hand; nobody may see which it was."""
    (alone,) = back(message)
    beside, _ = back(message, Message.user("x", metadata={"data": b""}))
    assert (repr(beside), beside.model_fields_set, beside.state) == (repr(alone), alone.model_fields_set, alone.state)


RAW = {"role": '"user"', "content": '"x"', "id": '"1"', "created_at": '"2026-01-01T00:00:00+00:00"'}
MOMENTS = [
    "2026-01-01", "2026-01-01T00:00:00", "2026-01-01-10:00", "2026-01-01T10:00+01:00", "2026-01-01T10:00:00Z", "20260101T10+0100",
    "2026-01-01 10:00:00+00:00", "2026-W01-1T10:00Z", "2026-01-01T10:00:00.123456789+00:00", "2026-01-01T10:00:00+00:00:00.5",
    "2026-01-01T10:00:00+01:00:00.5", "2026-01-01T10:00:00-00:00", "2026-01-01T25:00:00Z", "2026-01-01T10:00:00+24:00", "1767225600", "T1Z",
]  # fmt: skip
odd = st.one_of(
    values.map(partial(json.dumps, default=repr)),
    st.sampled_from(MOMENTS).map(json.dumps),
    st.sampled_from(["system", "robot", "USER"]).map(json.dumps),
    st.sampled_from([
        "NaN", "-Infinity", "1e400", "[NaN]", '{"a": NaN}', "{}", "[]", '""', "null",
        "[" * 250 + "]" * 250, '{"a": ' * 300 + "1" + "}" * 300,
        '{"$text": "eA=="}', r'{"\u0024text": "eA=="}', r'{"a": {"\u0024bytes": "AAAA"}}', '{"$object": [[1, 2]]}', '{"$new": 1}', "\x00",
        '[{"type": "text", "text": "x"}]', '[{"type": "later"}]', '[{"id": "1", "name": "f", "arguments": {}}]', "[{}]", r'"\ud83d"',
        '[{"id": "1", "name": "f", "arguments": {"a": 1, "a": 2}, "later": 1}]', '{"a": 1, "a": 2}', '"a', "tru",
    ]),
)  # fmt: skip
fields = st.sampled_from([*Message.model_fields, "edit", "note", "data", "ids", "later", r"r\u006fle", "$text"])


@settings(max_examples=200)
@given(st.sets(st.sampled_from(list(RAW)), max_size=1), st.lists(st.tuples(fields, odd), max_size=3))
@example(set(), [("metadata", r'{"a": {"\u0024bytes": "AAAA"}}')])
@example(set(), [("created_at", '"2026-01-01T10:00:00+01:00:00.5"')])
@example({"id"}, [])
def test_what_is_damaged_is_read_or_refused_the_same_whatever_stands_beside_it(without, said):
    """No reader takes for a message what another one calls damaged, or takes it for another one: of its fields any, twice or none."""
    raw = [*((name, value) for name, value in RAW.items() if name not in without), *said]
    document = "{" + ", ".join(f'"{name}": {value}' for name, value in raw) + "}"
    beside = encode_message(Message.user("x", metadata={"data": b""})).decode()
    assert outcome(f"[{document}]") == outcome(f"[{document}, {beside}]")


def outcome(body: str) -> object:
    """Return how a body's first item reads, with all there is to see of it; None when it is refused."""
    try:
        item = decode_body(body.encode())[0]
    except ValueError:
        return None
    return repr(item), _types(dict(item)), item.model_fields_set


@given(objects)
@example({"$bytes": "AAAA"})
@example({"$object": [["a", 1]]})
@example({"$text": 1})
@example({"\ud800": {"$float": "nan"}})
def test_what_looks_like_our_own_encoding_is_kept_as_it_is(metadata):
    """An app's own `$bytes` key must not become bytes."""
    (again,) = back(Message.user("x", metadata=metadata))
    assert again.metadata == metadata
    assert _types(again.metadata) == _types(metadata)


def _types(value):
    if isinstance(value, dict):
        return {key: _types(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_types(item) for item in value]
    return type(value), math.copysign(1, value) if isinstance(value, float) else 0


def test_nan_comes_back_as_nan():
    """It is equal to nothing, so it is looked at."""
    (again,) = back(Message.user("x", extras={"score": [float("nan")]}))
    assert math.isnan(again.extras["score"][0])


def test_four_megabytes_come_back():
    """Text as long as a book."""
    long = "ü\0" * (2 * 2**20)
    assert back(Message.user(long))[0].content == long


def test_two_halves_of_a_surrogate_pair_stay_two():
    """Python keeps them apart, so we do."""
    assert back(Message.user("\ud83d" + "\ude00"))[0].content == "\ud83d\ude00"
    assert len(back(Message.user("\ud83d" + "\ude00"))[0].text) == 2


@pytest.mark.parametrize("fold", [0, 1])
def test_a_time_in_the_hour_that_comes_twice_comes_back_equal(fold):
    """Python calls such a time unequal to every time of another zone, its own copy in UTC included."""
    message = Message.user("x", created_at=datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=ZoneInfo("Europe/Berlin")))
    assert back(message) == [message]


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"when": datetime.now(UTC)}, "metadata.when"),
        ({"tags": ["a", {"b": {1, 2}}]}, "metadata.tags[1].b"),
        ({"pair": (1, 2)}, "metadata.pair"),
        ({"deep": {1: "x"}}, "metadata.deep"),
        ({"n": 10**5000}, "metadata.n"),
        ({"o": object()}, "metadata.o"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_field(metadata, field):
    """Before any model runs."""
    with pytest.raises(InvalidMessage) as caught:
        encode_message(Message.user("x", metadata=metadata))
    assert caught.value.field == field


def test_what_contains_itself_or_is_too_deep_is_refused():
    """Whatever is stored can be read from any depth of the stack."""
    loop: list = []
    loop.append(loop)
    deep: list = []
    for _ in range(300):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(InvalidMessage):
            encode_message(Message.user("x", metadata={"a": value}))


@pytest.mark.parametrize(
    "part",
    [
        UnknownPart(type="text", fields={"text": "x"}),
        UnknownPart(type="text", fields={}),
        UnknownPart(type="hologram", fields={"type": "y"}),
        UnknownPart(type="hologram", fields={"\ud800": "y"}),
    ],
)
def test_a_part_that_would_come_back_as_another_is_refused(part):
    """Refused by name rather than changed without a word."""
    with pytest.raises(InvalidMessage) as caught:
        encode_message(Message.user([TextPart(text="a"), part]))
    assert caught.value.field.startswith("content[1]")


def test_a_part_of_a_later_version_may_have_any_fields():
    """One named as ours are is still one of its own."""
    message = Message.user([UnknownPart(type="later", fields={"fields": {"a": 1}})])
    assert back(message) == [message]


def test_a_part_of_a_later_version_is_kept():
    """Readable as far as known, never dropped."""
    parts = [{"type": "hologram", "beams": 3}]
    document = {"role": "user", "content": parts, "id": "1", "created_at": "2026-01-01T00:00:00+00:00", "new": 1}
    (message,) = decode_messages(json.dumps([document]).encode())
    assert message.content == (UnknownPart(type="hologram", fields={"beams": 3}),)
    assert back(message) == [message]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[1]", b"[{}]", b"\xff", b"null", b"[[]]", b'[{"role":"user"}]',
        b'[{"role":"user","content":{"$new":1},"id":"1","created_at":"2026-01-01T00:00:00+00:00"}]',
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_body_is_one_kind_of_error(body):
    """The rest of the conversation loads, whatever the damage."""
    with pytest.raises(ValueError, match=r".*"):
        decode_messages(body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("role", "robot"), ("role", ["user"]), ("content", 5), ("content", None), ("content", [5]), ("id", 1), ("id", None), ("name", 3),
        ("tool_call_id", True), ("created_at", "2026-01-01T00:00:00"), ("created_at", 3), ("created_at", "today"), ("metadata", []),
        ("extras", "x"), ("tool_calls", [{"id": 1, "name": "f", "arguments": {}}]), ("tool_calls", {"id": "1"}), ("tool_calls", 3),
    ],
)  # fmt: skip
def test_a_damaged_field_is_the_same_kind_of_error(field, value):
    """What was valid when it was stored is not validated anew; what cannot have been valid is refused all the same."""
    document = {"role": "user", "content": "x", "id": "1", "created_at": "2026-01-01T00:00:00+00:00", field: value}
    with pytest.raises(ValueError, match=r"not a list of messages|isoformat"):
        decode_messages(json.dumps([document]).encode())


@given(messages)
def test_a_message_from_a_store_is_a_message_like_any_other(message):
    """It is built without validation: nothing that pydantic keeps for its own use may be missing."""
    (restored,) = back(message)
    for stored in (restored, copy.copy(restored), copy.deepcopy(restored), pickle.loads(pickle.dumps(restored))):
        assert stored == message
        assert [name for name, _ in stored] == [name for name, _ in message]
        assert (stored.state, stored.archived) == ("complete", False)
    assert restored.in_state("running").in_archive().state == "running"
    assert Message(**dict(restored)) == restored
    with pytest.raises(ValidationError):
        restored.role = "tool"  # type: ignore[misc]


CHANGES = {
    "set": lambda fields: fields.__setitem__("mood", 1),
    "delete": lambda fields: fields.__delitem__("mood"),
    "|=": lambda fields: fields.__ior__({"mood": 1}),
    "update": lambda fields: fields.update(mood=1),
    "setdefault": lambda fields: fields.setdefault("more", 1),
    "pop": lambda fields: fields.pop("mood", None),
    "popitem": lambda fields: fields.popitem(),
    "clear": lambda fields: fields.clear(),
}


@pytest.mark.parametrize("fields", [{}, {"mood": "fine"}], ids=["none", "some"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_metadata_and_extras_are_frozen_with_their_message(fields, change):
    """Nobody would store the change, so nobody is let believe it; the error says how to make another message."""
    made = Message.user("x", metadata=fields, extras=fields)
    (stored,) = decode_messages(encode_messages([encode_message(made)]))
    for message in (made, stored, pickle.loads(pickle.dumps(made)), copy.deepcopy(made), made.model_copy(deep=True)):
        for held in (message.metadata, message.extras):
            with pytest.raises(TypeError, match="model_copy"):
                change(held)
            assert held == fields


def test_metadata_is_a_dict_for_all_who_read_it():
    """It is compared, hashed, written as JSON, merged and copied as one, and what was copied can be changed."""
    message = Message.user("x", metadata={"mood": "fine"})
    assert json.dumps(message.metadata) == '{"mood": "fine"}'
    assert message.model_dump()["metadata"] == {"mood": "fine"}
    assert hash(message.metadata) == hash(Message.user("y", metadata={"mood": "fine"}).metadata)
    for copied in (dict(message.metadata), {**message.metadata}, message.metadata | {}, message.metadata.copy()):
        copied["mood"] = "better"
    assert message.model_copy(update={"metadata": copied}).metadata == {"mood": "better"}
    assert message.metadata == {"mood": "fine"}


def test_a_message_is_frozen_and_forbids_what_it_does_not_know():
    """A typo in a field is no metadata."""
    message = Message.user("x")
    with pytest.raises(ValidationError):
        message.content = "y"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Message.user("x", nmae="ada")
    with pytest.raises(ValidationError):
        Message.user("x", created_at=datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point
    for fields in ({}, {"url": "u", "data": b"d", "media_type": "m"}, {"data": b"d"}):
        with pytest.raises(ValueError, match="image"):
            ImagePart(**fields)


def test_the_state_is_no_part_of_equality_and_never_stored():
    """It is derived at each load."""
    message = Message.user("x")
    running = message.in_state("running")
    assert (running.state, message.state) == ("running", "complete")
    assert running == message
    assert hash(running) == hash(message)
    assert encode_message(running) == encode_message(message)


def test_ids_sort_by_the_time_they_were_made():
    """Unique too."""
    made = [Message.user(str(i)) for i in range(200)]
    assert len({message.id for message in made}) == 200
    assert [m.created_at for m in sorted(made, key=lambda m: m.id)] == sorted(m.created_at for m in made)


def test_a_message_is_as_old_as_its_id_says():
    """Made now, an id is the time now; whoever makes a message anew under the id it had gives it the time it had."""
    message = Message.user("x")
    assert abs(datetime.now(UTC) - message.created_at) < timedelta(seconds=5)
    assert datetime.fromisoformat(message.id) == message.created_at
    assert Message.assistant("y", id=message.id).created_at == message.created_at
    for other in ("", "1", "2026", "2026-01-01T10:00:00", "2026-13-01T10:00:00Z", "run-20261121T171349.5Z"):
        assert abs(datetime.now(UTC) - Message.user("x", id=other).created_at) < timedelta(seconds=5)


MADE = "20261121T171349.123456071828182845904Z"
THEN = datetime(2026, 11, 21, 17, 13, 49, 123456, UTC)


@pytest.mark.parametrize(
    ("identifier", "moment", "told"),
    [
        (MADE, THEN, False),
        (MADE, THEN.astimezone(timezone(timedelta(hours=1))), True),
        (MADE, THEN.astimezone(ZoneInfo("Europe/Lisbon")), False),
        (MADE, THEN + timedelta(microseconds=1), True),
        (MADE.replace("Z", "+01:00"), THEN, True),
        ("1", THEN, True),
    ],
)
def test_a_time_is_stored_unless_the_id_is_that_time(identifier, moment, told):
    """48 bytes less a message, on the wire and on disk; a time elsewhere, or with another offset, is another one."""
    message = Message.user("x", id=identifier, created_at=moment)
    assert ("created_at" in json.loads(encode_message(message))) == told
    for beside in (), (Message.user("x", metadata={"data": b""}),):
        again = back(message, *beside)[0]
        assert again == message
        assert again.created_at.isoformat() == message.created_at.isoformat()
        assert again.model_fields_set == {"role", "content", "id", "created_at"}


@pytest.mark.parametrize("field", ["role", "content", "id", "created_at"])
def test_what_every_stored_message_has_is_never_made_up(field):
    """A message read today and tomorrow would be two, with two times."""
    document = {"role": "user", "content": "x", "id": "1", "created_at": "2026-01-01T00:00:00+00:00"}
    del document[field]
    with pytest.raises(ValueError, match="not a list of messages"):
        decode_messages(json.dumps([document]).encode())
