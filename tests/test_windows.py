"""What the model sees is always valid: properties of windows over any history."""

import pytest
from hypothesis import given, strategies as st

from convmem import Message, ToolCall, Window
from convmem.exceptions import ConfigurationError
from convmem.windows import NO_RESULT, Turn, View, view


@st.composite
def message(draw):
    role = draw(st.sampled_from(["user", "user", "assistant", "assistant", "tool", "system"]))
    content = draw(st.sampled_from(["", "a", "b"]))
    if role == "tool":
        return Message.tool(content, tool_call_id=draw(st.sampled_from("xyz")))
    calls = draw(st.lists(st.sampled_from("xyz"), max_size=3, unique=True)) if role == "assistant" else []
    return Message(role=role, content=content, tool_calls=tuple(ToolCall(id=name, name="f") for name in calls))


@st.composite
def good_turn(draw):
    """Return a turn as handlers write it: a question, perhaps tools, an answer."""
    said = [Message.user("q")]
    if draw(st.booleans()):
        said.insert(0, Message.system(draw(st.sampled_from("pq"))))
    for _ in range(draw(st.integers(0, 3))):
        names = draw(st.lists(st.sampled_from("xyz"), min_size=1, max_size=3, unique=True))
        said.append(Message.assistant("", tool_calls=[ToolCall(id=name, name="f") for name in names]))
        said += [Message.tool("r", tool_call_id=name) for name in draw(st.permutations(names))]
    said.append(Message.assistant("a"))
    return Turn(tuple(said))


wild = st.builds(Turn, st.lists(message(), max_size=6).map(tuple), st.sampled_from(["complete", "interrupted", "running"]))
limits = st.none() | st.integers(1, 8)
windows = st.builds(Window, turns=limits, messages=limits, unfinished=st.sampled_from(["keep", "drop"]))


@given(st.lists(wild, max_size=6), windows, st.lists(message().filter(lambda m: m.role == "system"), max_size=2))
def test_whatever_was_stored_the_model_sees_something_valid(turns, window, pinned):
    """P10: begins with a user after the system messages, and no call or result stands alone."""
    shown = view(turns, window, pinned=pinned)
    spoken = [m for m in shown.messages if m.role != "system"]
    assert not spoken or spoken[0].role == "user"
    _check_pairs(spoken)
    assert 0 <= shown.turns <= len(turns)


def _check_pairs(said: list[Message]) -> None:
    waiting: set[str] = set()
    for m in said:
        if m.role == "tool":
            assert m.tool_call_id in waiting, "a result without its call, or twice"
            waiting.remove(m.tool_call_id)
        else:
            assert not waiting, "a call without its result"
            waiting = {call.id for call in m.tool_calls}
    assert not waiting, "a call without its result at the end"


@given(st.lists(wild, max_size=6), windows)
def test_nothing_is_changed_and_the_order_is_kept(turns, window):
    """A window is a view."""
    before = [(turn.state, [m.model_dump() for m in turn.messages]) for turn in turns]
    shown = view(turns, window)
    assert [(turn.state, [m.model_dump() for m in turn.messages]) for turn in turns] == before
    order = {m.id: i for i, m in enumerate(m for turn in turns for m in turn.messages)}
    places = [order[m.id] for m in shown.messages if m.role != "system"]
    assert places == sorted(set(places))


@given(st.lists(good_turn(), max_size=8), windows)
def test_a_history_that_is_valid_is_cut_between_turns_only(turns, window):
    """Limits hold, the newest stay, and what is left out is counted in whole turns."""
    shown = view(turns, window)
    kept = turns[len(turns) - shown.turns :]
    if not shown.cut:
        spoken = [m for m in shown.messages if m.role != "system"]
        assert spoken == [m for turn in kept for m in turn.messages if m.role != "system"]
        if window.messages is not None:
            assert sum(len(turn.messages) for turn in kept) <= window.messages
            older = turns[: len(turns) - shown.turns]
            if older and (window.turns is None or shown.turns < window.turns):
                assert sum(len(turn.messages) for turn in [older[-1], *kept]) > window.messages
    else:
        assert shown.turns == 1
        assert len(turns[-1].messages) > (window.messages or 0)
    if window.turns is not None:
        assert shown.turns <= window.turns
    if turns:
        assert shown.turns >= 1


@given(st.lists(good_turn(), max_size=8), windows)
def test_every_system_message_is_seen_however_small_the_window(turns, window):
    """Once each, those that say the same once."""
    shown = view(turns, window)
    assert {m.text for m in shown.messages if m.role == "system"} == {m.text for t in turns for m in t.messages if m.role == "system"}


@given(good_turn(), st.integers(1, 6))
def test_a_single_turn_larger_than_the_window_keeps_its_question_and_its_newest_messages(turn, limit):
    """Cut inside, in the same way."""
    shown = view([turn], Window(messages=limit))
    assert shown.cut == (len(turn.messages) > limit)
    question = next(m for m in turn.messages if m.role == "user")
    assert question in shown.messages
    opening = sum(m.role == "system" for m in turn.messages) + 1
    assert len(shown.messages) <= max(limit, opening)
    if limit > opening:
        assert turn.messages[-1] in shown.messages


@pytest.mark.parametrize("window", [Window(messages=4), Window(tokens=12, counter=lambda message: 3)])
def test_a_turn_that_does_not_begin_with_its_question_is_cut_in_its_order(window):
    """What was said before the question is not put behind it."""
    greeting, hint = Message.assistant("hello"), Message.assistant("ask me")
    said = [Message.user("a"), Message.user("b"), Message.user("c")]
    assert view([Turn((greeting, hint, *said))], window).messages == tuple(said)


@given(st.lists(wild, max_size=6), st.sampled_from(["keep", "drop"]))
def test_unfinished_turns_are_kept_with_their_state_or_dropped_whole(turns, unfinished):
    """Each message reads what became of its turn."""
    shown = view(turns, Window(unfinished=unfinished))
    states = {m.id: turn.state for turn in turns for m in turn.messages}
    for m in shown.messages:
        if m.role != "system":
            assert m.state == states[m.id]
            assert unfinished == "keep" or m.state == "complete"


def test_a_call_whose_result_never_came_is_left_out_and_its_text_kept():
    """A tool that never answered must not make every later request invalid."""
    calls = [ToolCall(id="x", name="f"), ToolCall(id="y", name="f")]
    turn = Turn((Message.user("q"), Message.assistant("let me see", tool_calls=calls), Message.tool("r", tool_call_id="y")))
    shown = view([turn], Window()).messages
    assert [(m.role, [c.id for c in m.tool_calls]) for m in shown] == [("user", []), ("assistant", ["y"]), ("tool", [])]
    only = view([Turn((Message.user("q"), Message.assistant("", tool_calls=calls)))], Window()).messages
    assert [m.role for m in only] == ["user"]
    said = view([Turn((Message.user("q"), Message.assistant("hm", tool_calls=calls)))], Window()).messages
    assert [(m.text, m.tool_calls) for m in said] == [("q", ()), ("hm", ())]


def test_a_result_that_came_twice_is_shown_once():
    """Model APIs refuse the second."""
    call = Message.assistant("", tool_calls=[ToolCall(id="x", name="f")])
    results = [Message.tool(text, tool_call_id="x") for text in ("r", "r again")]
    shown = view([Turn((Message.user("q"), call, *results))], Window()).messages
    assert [m.text for m in shown] == ["q", "", "r"]


def test_no_history_is_no_message():
    """Empty in, empty out."""
    assert view([], Window()) == View((), 0, cut=False)


@pytest.mark.parametrize("options", [{"turns": 0}, {"turns": -1}, {"messages": 0}, {"turns": "5"}, {"unfinished": "hide"}, {"turns": 1.5}])
def test_a_window_that_shows_nothing_is_refused(options):
    """With the values that work."""
    with pytest.raises(ConfigurationError, match=r"use "):
        Window(**options)


# Windows in tokens


def by_length(message: Message) -> int:
    """Count a token for each character, and one for the message: easy to reckon with."""
    return 1 + len(message.text)


def tokens_of(messages) -> int:
    return sum(map(by_length, messages))


token_windows = st.builds(
    Window,
    turns=limits,
    messages=limits,
    tokens=st.integers(1, 40),
    counter=st.just(by_length),
    unfinished=st.sampled_from(["keep", "drop"]),
    unanswered=st.sampled_from(["drop", "close"]),
)
systems = st.lists(message().filter(lambda m: m.role == "system"), max_size=2)


@given(st.lists(wild, max_size=6), token_windows, systems, st.lists(message(), max_size=3))
def test_whatever_was_stored_a_window_in_tokens_is_valid_and_holds(turns, window, pinned, present):
    """P10, and the budget: only system messages and the present turn, which are never left out, can be more than it."""
    shown = view(turns, window, pinned=pinned, present=present)
    spoken = [m for m in shown.messages if m.role != "system"]
    assert not spoken or spoken[0].role == "user"
    answers = []
    for m in present:
        if m.role != "tool":
            break
        answers.append(m)
    calls = {call.id for m in spoken[-1:] for call in m.tool_calls}
    _check_pairs([*spoken, *_first_results(answers, calls)] if calls else _without_answered_tail(spoken, answers))
    if spoken:
        assert tokens_of(shown.messages) + tokens_of(present) <= (window.tokens or 0)


def _first_results(answers, calls):
    """Return the results among the answers that the last call waits for, each once."""
    taken = []
    for m in answers:
        if m.tool_call_id in calls:
            calls = calls - {m.tool_call_id}
            taken.append(m)
    return taken


def _without_answered_tail(spoken, answers):
    """Return what is shown, with the results that the present turn brings for the last calls."""
    last = next((i for i in range(len(spoken) - 1, -1, -1) if spoken[i].role != "tool"), None)
    if last is None:
        return spoken
    waiting = {call.id for call in spoken[last].tool_calls} - {m.tool_call_id for m in spoken[last + 1 :]}
    return [*spoken, *_first_results(answers, waiting)]


@given(st.lists(good_turn(), max_size=8), st.integers(1, 60), st.lists(st.just(Message.user("now")), max_size=2))
def test_a_window_in_tokens_is_the_longest_run_of_whole_turns_that_fits(turns, tokens, present):
    """Against the naive way: try every length, and count everything each time."""
    window = Window(turns=None, tokens=tokens, counter=by_length)
    shown = view(turns, window, present=present)
    lengths = [
        k
        for k in range(len(turns) + 1)
        if tokens_of(view(turns, Window(turns=k or 1)).messages if k else _only_system(turns)) <= tokens - tokens_of(present)
    ]
    best = max(lengths, default=0)
    if not shown.cut:
        assert shown.turns == best
        assert shown.full == (best < len(turns))
    else:
        assert best == 0
        assert shown.turns == 1
        assert tokens_of(shown.messages) <= tokens - tokens_of(present)
        assert next(m for m in turns[-1].messages if m.role == "user") in shown.messages
        left = [m for m in turns[-1].messages if m not in shown.messages]
        assert left


def _only_system(turns):
    return view(turns[:0], Window(), pinned=[m for t in turns for m in t.messages if m.role == "system"]).messages


@given(good_turn(), st.integers(1, 40))
def test_a_turn_larger_than_the_window_keeps_its_question_and_the_newest_that_fits(turn, tokens):
    """Nothing in between is skipped, and no unit that would still fit is left out."""
    shown = view([turn], Window(tokens=tokens, counter=by_length))
    said = [m for m in turn.messages if m.role != "system"]
    opening = tokens_of(m for m in turn.messages if m.role == "system") + by_length(said[0])
    if opening > tokens:
        assert [m for m in shown.messages if m.role != "system"] == []
        return
    spoken = [m for m in shown.messages if m.role != "system"]
    assert spoken[0] == said[0]
    assert spoken[1:] == said[len(said) - len(spoken) + 1 :]
    if len(spoken) < len(said):
        rest = said[1 : len(said) - len(spoken) + 1]
        unit = [rest.pop()]
        while unit[0].role == "tool":
            unit.insert(0, rest.pop())
        assert tokens_of(shown.messages) + tokens_of(unit) > tokens


def test_system_messages_count_once_wherever_they_stand():
    """Lifted or in their place, and those that say the same are one."""
    turns = [Turn((Message.system("be brief"), Message.user(f"q{i}"), Message.assistant(f"a{i}"))) for i in range(3)]
    cost = 9 + 3 + 3
    shown = view(turns, Window(tokens=cost, counter=by_length))
    assert ([m.text for m in shown.messages], shown.turns) == (["be brief", "q2", "a2"], 1)
    assert view(turns, Window(tokens=cost - 1, counter=by_length)).cut
    two = view(turns, Window(tokens=2 * cost, counter=by_length))
    assert ([m.text for m in two.messages], two.turns) == (["be brief", "q1", "a1", "be brief", "q2", "a2"], 2)


@pytest.mark.parametrize(("limit", "budget"), [(3, 99), (99, 3), (3, 3)])
def test_a_turn_cut_by_either_limit_is_said_to_be_cut(limit, budget):
    """`truncated` is how a user finds out."""
    turn = Turn((Message.user("q"), *(Message.assistant("a") for _ in range(5))))
    shown = view([turn], Window(messages=limit, tokens=budget, counter=lambda message: 1))
    assert (shown.cut, shown.full, len(shown.messages)) == (True, True, 3)


def test_a_call_without_a_result_is_closed_when_that_is_wished():
    """By one that says so, the same each time, never stored; real results come first."""
    calls = [ToolCall(id="x", name="f"), ToolCall(id="y", name="g")]
    turn = Turn((Message.user("q"), Message.assistant("hm", tool_calls=calls), Message.tool("r", tool_call_id="y")), "interrupted")
    window = Window(unanswered="close")
    shown = view([turn], window).messages
    assert [(m.role, m.text, m.tool_call_id, m.state) for m in shown[2:]] == [
        ("tool", "r", "y", "interrupted"),
        ("tool", NO_RESULT, "x", "interrupted"),
    ]
    assert shown[1].tool_calls == tuple(calls)
    assert view([turn], window).messages == shown


@pytest.mark.parametrize("unanswered", ["drop", "close"])
def test_a_result_that_the_present_turn_brings_answers_the_call_before_it(unanswered):
    """A tool that runs in the browser: the call ended the turn before, its result begins this one."""
    call = Message.assistant("", tool_calls=[ToolCall(id="x", name="f")])
    turns = [Turn((Message.user("q"), call))]
    result = Message.tool("r", tool_call_id="x")
    window = Window(unanswered=unanswered)
    assert view(turns, window, present=[result]).messages == (turns[0].messages[0], call)
    assert len(view(turns, window, present=[Message.user("never mind"), result]).messages) == (1 if unanswered == "drop" else 3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": 0}, r"Window\(tokens=0\): use a whole number from 1"),
        ({"counter": len}, "give both"),
        ({"tokens": 5, "counter": 5}, "give both"),
        ({"unanswered": "keep"}, r"Window\(unanswered='keep'\): use 'drop' or 'close'"),
    ],
)
def test_a_window_that_cannot_work_is_refused(options, sentence):
    """When the app is built, not when the first long conversation comes."""
    with pytest.raises(ConfigurationError, match=sentence):
        Window(**options)
