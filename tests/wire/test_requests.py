"""Parsing: every field is honoured, harmless or refused by name; no number gets past its bounds."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequest, RequestError, Unsupported
from headrace.wire.body import parse_json
from headrace.wire.calls import Call, Conversation, Prompts
from headrace.wire.limits import Limits
from headrace.wire.openai_requests import CHAT_FIELDS, COMPLETION_FIELDS, parse_chat, parse_completion
from headrace.wire.refusals import HINTS, NOT_HONOURED
from headrace.wire.sampling import usable_defaults

LIMITS = Limits(max_model_len=1000, vocab_size=100)
MESSAGES = [{"role": "user", "content": "hi"}]
HOSTILE: list[Any] = [
    -(2**63), -1, 0, 1, 2, 128, 129, 2**31 - 1, 2**31, 2**63, 10**30, -0.5, 1.5, 1e308, -1e308, math.nan, math.inf,
    -math.inf, "1", "", True, False, None, [], {}, [1], {"a": 1}, "\ud800",
]  # fmt: skip
NUMERIC = [
    "n", "best_of", "logprobs", "top_logprobs", "max_tokens", "max_completion_tokens", "min_tokens", "top_k", "seed",
    "priority", "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "prompt_logprobs", "timeout",
]  # fmt: skip


def completion(**fields: Any) -> Any:
    return parse_completion({"prompt": "x", **fields}, LIMITS, {})


def chat(**fields: Any) -> Any:
    return parse_chat({"messages": MESSAGES, **fields}, LIMITS, {})


def outcome(parse: Any, **fields: Any) -> Call | RequestError:
    """The call, or the refusal, which must be a 400."""
    try:
        call = parse(**fields)
    except RequestError as error:
        if error.status != 400:
            raise AssertionError(f"status {error.status}") from error
        return error
    assert isinstance(call, Call)
    return call


@pytest.mark.parametrize("field", NUMERIC)
@pytest.mark.parametrize("value", HOSTILE, ids=[ascii(v) for v in HOSTILE])
def test_numbers_are_in_bounds_or_refused(field: str, value: Any) -> None:
    """C11: 400, or a call all of whose numbers are sane."""
    for parse in (completion, chat):
        call = outcome(parse, **{field: value})
        if isinstance(call, RequestError):
            assert field in str(call) or "logprobs" in field
            continue
        assert value is None or not isinstance(value, str | list | dict)
        assert (
            isinstance(value, bool) == (field == "logprobs" and parse is chat)
            or value is None
            or not isinstance(value, bool)
        )
        sampling = call.sampling
        assert 1 <= call.n <= 128
        assert 1 <= sampling.max_tokens <= 1000
        assert 0 <= sampling.min_tokens <= sampling.max_tokens
        assert 0 <= sampling.temperature <= 2
        assert 0 < sampling.top_p <= 1
        assert 0 <= sampling.min_p <= 1
        assert 0 <= sampling.top_k < 100
        assert 0 < sampling.repetition_penalty <= 10
        assert sampling.seed is None or 0 <= sampling.seed < 2**63
        assert -(2**31) < call.priority < 2**31
        assert sampling.logprobs is None or 0 <= sampling.logprobs <= 20
        assert sampling.prompt_logprobs is None or 0 <= sampling.prompt_logprobs <= 20
        assert call.timeout is None or 0 < call.timeout <= 86_400


@pytest.mark.parametrize(("field", "parse"), [(f, completion) for f in sorted(COMPLETION_FIELDS | set(NOT_HONOURED))])
@pytest.mark.parametrize("value", [[[[]]], {"a": {"b": 1}}, 3.5, "\x00"], ids=ascii)
def test_no_value_of_any_field_escapes_as_another_error(field: str, parse: Any, value: Any) -> None:
    assert isinstance(outcome(parse, **{field: value}), Call | RequestError)


def test_null_means_not_given() -> None:
    everything = dict.fromkeys(sorted(COMPLETION_FIELDS | set(NOT_HONOURED) | set(HINTS) | {"nonsense"}))
    assert parse_completion({**everything, "prompt": "x"}, LIMITS, {}) == completion()
    everything = dict.fromkeys(sorted(CHAT_FIELDS | set(NOT_HONOURED) | set(HINTS)))
    assert parse_chat({**everything, "messages": MESSAGES}, LIMITS, {}) == chat()


@pytest.mark.parametrize("name", sorted(NOT_HONOURED))
def test_what_is_not_honoured_is_refused_by_name_and_its_neutral_value_is_not(name: str) -> None:
    for parse, honoured in ((completion, COMPLETION_FIELDS), (chat, CHAT_FIELDS)):
        if name in honoured:
            continue
        for neutral in NOT_HONOURED[name].neutral:
            parse(**{name: neutral})
        with pytest.raises(Unsupported, match=name) as caught:
            parse(**{name: "something else entirely"})
        assert caught.value.param == name


def test_neutral_values_are_compared_with_their_types() -> None:
    with pytest.raises(Unsupported):
        completion(use_beam_search=0)
    with pytest.raises(Unsupported):
        completion(length_penalty=True)


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(InvalidRequest, match=r"unknown field 'temprature'; did you mean temperature\?"):
        completion(temprature=1)
    with pytest.raises(InvalidRequest, match="unknown field"):
        chat(**{"x" * 10_000: 1})
    with pytest.raises(InvalidRequest, match="unknown field") as caught:
        chat(**{"\ud800\n\x1b[31m": 1})
    assert "\x1b" not in str(caught.value)
    with pytest.raises(InvalidRequest, match="messages"):
        completion(messages=MESSAGES)


def test_hints_are_accepted_and_change_nothing() -> None:
    hints = {"user": "u", "metadata": {"a": "b"}, "parallel_tool_calls": True, "prompt_cache_key": "k"}
    assert chat(**hints) == chat()
    with pytest.raises(InvalidRequest, match="user"):
        chat(user=5)


PROMPTS: list[tuple[Any, tuple[Any, ...]]] = [
    ("hi", ("hi",)),
    (["a", "b"], ("a", "b")),
    ([1, 2], ((1, 2),)),
    ([[1], [2, 3]], ((1,), (2, 3))),
    ("", ("",)),
]


@pytest.mark.parametrize(("prompt", "expected"), PROMPTS)
def test_prompts(prompt: Any, expected: tuple[Any, ...]) -> None:
    call = completion(prompt=prompt)
    assert isinstance(call.content, Prompts)
    assert call.content.items == expected
    assert call.max_tokens == 16


@pytest.mark.parametrize(
    "prompt",
    [
        None, [], [[]], 5, True, [True], ["a", 1], [1, "a"], [[1], "a"], [["a"]],
        [1.0], [-1], [100], [2**63], [[1, -1]],
        {"a": 1}, ["a"] * 1025, [1] * 1001, "\ud800", [None],
    ],
    ids=lambda p: ascii(p)[:30],
)  # fmt: skip
def test_bad_prompts(prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        completion(prompt=prompt)


def test_the_work_of_one_call_is_bounded() -> None:
    with pytest.raises(InvalidRequest, match="sequences"):
        completion(prompt=["a"] * 100, n=11)
    roomy = Limits(max_model_len=1_000_000, vocab_size=100)
    with pytest.raises(InvalidRequest, match="max_tokens"):
        parse_completion({"prompt": ["a"] * 1000, "max_tokens": 100_000}, roomy, {})


def test_token_ids_are_checked_against_the_logits_width() -> None:
    """C13."""
    ids: list[Any] = [[-1], [100], [2**31], [2**63], [True], ["1"], [1.0], 5, [1] * 4097]
    for field in ("stop_token_ids", "allowed_token_ids"):
        for bad in ids:
            with pytest.raises(InvalidRequest, match=field):
                completion(**{field: bad})
        completion(**{field: [0, 99]})
    biases: list[Any] = [
        {"100": 1},
        {"-1": 1},
        {"x": 1},
        {"1": "1"},
        {"1": 101},
        {"²": 1},
        {str(2**63): 1},
        {"1": True},
        [],
    ]
    for bad in biases:
        with pytest.raises(InvalidRequest, match="logit_bias"):
            completion(logit_bias=bad)
    assert completion(logit_bias={"5": -100, "6": 1.5}).sampling.logit_bias == {5: -100.0, 6: 1.5}


def test_strings_are_bounded() -> None:
    """C12, C23."""
    for bad in (["a"] * 65, ["a" * 1025], [""], [5], 5, "", [None], {"a": 1}, ["\ud800"]):
        with pytest.raises(InvalidRequest, match="stop"):
            completion(stop=bad)
    assert completion(stop="a").sampling.stop == ("a",)
    for bad in ("", "a" * 129, "a b", "a\n", 5, "é", ["a"], "a@b", "../x"):
        with pytest.raises(InvalidRequest, match="cache_salt"):
            completion(cache_salt=bad)
    assert completion(cache_salt="tenant-1_a.b").cache_salt == "tenant-1_a.b"


BAD_MESSAGES: list[Any] = [
    None, [], "hi", {}, [5], [{}], [{"role": "king", "content": "x"}], [{"role": "user"}], [{"role": ["user"]}],
    [{"role": "user", "content": 5}], [{"role": "user", "content": None}], [{"role": "user", "content": [5]}],
    [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": "\udc00"}],
    [{"role": "user", "content": "x", "extra": 1}],
    [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}],
    [{"role": "user", "content": "x"}] * 4097, [{"role": "user", "content": "x", "name": "n" * 513}],
    [{"role": "user", "content": [{"type": ["text"], "text": "a"}]}],
]  # fmt: skip


@pytest.mark.parametrize("messages", BAD_MESSAGES, ids=lambda m: ascii(m)[:40])
def test_bad_messages(messages: Any) -> None:
    with pytest.raises(InvalidRequest, match="messages"):
        chat(messages=messages)


def test_messages_come_out_in_one_shape() -> None:
    call = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": None},
            {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
            {"role": "user", "content": "", "name": "bob"},
        ]
    )
    assert isinstance(call.content, Conversation)
    assert call.content.messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "", "name": "bob"},
    )


@pytest.mark.parametrize(
    "message",
    [
        {"role": "function", "content": "x", "name": "f"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "custom"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]},
    ],
)
def test_tools_and_media_are_refused_by_name(message: Any) -> None:
    with pytest.raises(Unsupported, match=r"messages\[0\]"):
        chat(messages=[message])


def test_chat_options() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert chat().max_tokens is None
    assert chat().sampling.max_tokens == 1000
    assert chat(logprobs=True).sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=3).sampling.logprobs == 3
    with pytest.raises(InvalidRequest, match="top_logprobs"):
        chat(top_logprobs=3)
    assert chat(continue_final_message=True).content.add_generation_prompt is False
    with pytest.raises(InvalidRequest, match="continue_final_message"):
        chat(continue_final_message=True, add_generation_prompt=True)
    kwargs: list[Any] = [{"a": []}, {"a": {}}, {str(i): 1 for i in range(17)}, [], {"a": "x" * 513}]
    for bad in kwargs:
        with pytest.raises(InvalidRequest, match="chat_template_kwargs"):
            chat(chat_template_kwargs=bad)
    with pytest.raises(InvalidRequest, match="echo"):
        chat(echo=True)


def test_options_that_depend_on_each_other() -> None:
    with pytest.raises(InvalidRequest, match="stream_options"):
        completion(stream_options={"include_usage": True})
    style = completion(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}).style
    assert (style.stream, style.include_usage, style.continuous_usage) == (True, True, True)
    with pytest.raises(InvalidRequest, match="stream_options"):
        completion(stream=True, stream_options={"nonsense": True})
    with pytest.raises(InvalidRequest, match="min_tokens"):
        completion(min_tokens=17)
    with pytest.raises(InvalidRequest, match="min_tokens"):
        chat(min_tokens=1001)
    with pytest.raises(InvalidRequest, match="best_of"):
        completion(n=1, best_of=2)
    assert completion(n=2, best_of=2).n == 2
    with pytest.raises(InvalidRequest, match="max_tokens"):
        completion(max_tokens=0)
    assert completion(max_tokens=0, echo=True).max_tokens == 0


def test_all_that_a_template_writes_counts_as_a_conversations_length() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": "y" * 1000})}}
    turn = {"role": "assistant", "content": "z" * 10, "reasoning_content": "r" * 100, "tool_calls": [call]}
    content = parse_chat({"messages": [*MESSAGES, turn]}, LIMITS, {}).content
    assert isinstance(content, Conversation)
    assert content.characters > 1110


def test_the_models_own_defaults_hold_until_the_call_says_otherwise() -> None:
    defaults = {"temperature": 0.6, "top_p": 0.9, "top_k": 20.0}
    call = parse_chat({"messages": MESSAGES, "top_p": 1}, LIMITS, defaults)
    assert (call.sampling.temperature, call.sampling.top_p, call.sampling.top_k) == (0.6, 1.0, 20)
    assert chat().sampling.temperature == 1.0


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"null", b"1", b'"x"', b"{", b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1,"a":2}', b"\xff\xfe{}",
        b'{"a":"\xff"}', b'\xef\xbb\xbf{"a":1}', b"[" * 250_000, b'{"a":' * 250_000, b'{"a":' + b"9" * 5000 + b"}",
        b"{}x", b'{"a":1e999}', b'{"a":[-1e999]}', b'{"a":' + b"9" * 400 + b".0}", b'{"a":' * 129 + b"1" + b"}" * 129,
    ],
    ids=lambda r: ascii(r)[:30],
)  # fmt: skip
def test_bodies_that_are_refused(raw: bytes) -> None:
    """C15."""
    with pytest.raises(InvalidRequest):
        parse_json(raw)


def test_deep_and_wide_bodies_within_reason_are_read() -> None:
    assert parse_json(b'{"a":' + b"[" * 127 + b"]" * 127 + b"}")["a"]
    assert parse_json(b'{"a":[' + b"[]," * 1000 + b"1e30]}")["a"][-1] == 1e30
    assert len(parse_json(json.dumps({str(i): i for i in range(100_000)}).encode())) == 100_000


def test_defaults_from_a_models_files_are_no_more_trusted_than_callers() -> None:
    hostile = {"temperature": math.nan, "top_p": 0, "min_p": -1, "top_k": 2**40, "repetition_penalty": 1.1, "other": 3}
    assert usable_defaults(hostile) == {"repetition_penalty": 1.1}
    assert usable_defaults({"temperature": 0.6, "top_k": 20.0}) == {"temperature": 0.6, "top_k": 20}
    assert usable_defaults({}) == {"top_k": 0}
    assert usable_defaults({"top_k": math.inf}) == usable_defaults({"top_k": 0.5}) == {}


def test_temperatures_that_would_overflow_are_greedy() -> None:
    for temperature in (0, 1e-308, 9e-6):
        assert completion(temperature=temperature).sampling.temperature == 0
    assert completion(temperature=1e-5).sampling.temperature == 1e-5
    with pytest.raises(InvalidRequest, match="repetition_penalty"):
        completion(repetition_penalty=1e-300)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(sorted(COMPLETION_FIELDS | CHAT_FIELDS | set(NOT_HONOURED))), ANY_JSON))
def test_arbitrary_json_is_parsed_or_refused(body: dict[str, Any]) -> None:
    for parse in (parse_completion, parse_chat):
        found = outcome(lambda: parse(body, LIMITS, {}))  # noqa: B023  # called at once
        if isinstance(found, Call):
            assert found.sampling.max_tokens <= 1000
        else:
            str(found).encode()
