"""Canonical bytes and digests."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from sglang_cached_addon.core.keys import (
    FLOAT_FIELDS,
    FORMAT_VERSION,
    Digester,
    canonical,
    canonical_each,
    digest,
    parse,
    prefix,
)
from sglang_cached_addon.core.policy import Reason, Refused


def key(raw: str | bytes) -> bytes:
    """The canonical bytes of a body as it comes."""
    return canonical(parse(raw.encode() if isinstance(raw, str) else raw))


def refusal(raw: bytes) -> Reason:
    with pytest.raises(Refused) as caught:
        canonical(parse(raw))
    return caught.value.reason


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{} x",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":1 /* */}',
        b"{a:1}",
        b'{"a":01}',
        b'{"a":+1}',
        b'{"a":.5}',
        b'{"a":1.}',
        b'{"a":0x1}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e400}',
        b'{"a":-1e400}',
        b'{"temperature":1e400}',
        b'{"a":1' + b"0" * 400 + b"}",
        b'{"temperature":1' + b"0" * 400 + b"}",
        b'{"a":1' + b"0" * 5000 + b"}",
        b'{"a":18446744073709551616}',
        b'{"a":-9223372036854775809}',
        b'{"messages":[{"a":18446744073709551616}]}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":"\n"}',
        b'{"a":"\x00"}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\xc0\xaf"}',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-16-le"),
        "{}".encode("utf-16-be"),
        "{}".encode("utf-32"),
        b"{}\x00",
        b"\x00{}",
    ],
)
def test_not_json(raw: bytes) -> None:
    """What SGLang refuses, or reads as another value, would get a stored answer."""
    assert refusal(raw) is Reason.INVALID_JSON


@pytest.mark.parametrize("raw", [b"[]", b'[{"text":"a"}]', b'"a"', b"1", b"null", b"true"])
def test_not_an_object(raw: bytes) -> None:
    """A body that SGLang refuses would get a stored answer."""
    assert refusal(raw) is Reason.MALFORMED


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'{"a":1,"b":2,"a":null}',
        b'{"sampling_params":{"temperature":0,"temperature":1}}',
        b'{"messages":[{"content":"a","content":"b"}]}',
        b'{"a":[[[{"b":{"c":1,"c":1}}]]]}',
        b'{"rid":"x","rid":"y"}',
        b'{"":1,"":2}',
    ],
)
def test_repeated_key(raw: bytes) -> None:
    """SGLang takes the last value; a stored answer to the first one might come."""
    assert refusal(raw) is Reason.DUPLICATE_KEY


@pytest.mark.parametrize(
    ("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")], ids=["lists", "objects"]
)
def test_deep_nesting(opening: bytes, closing: bytes) -> None:
    """A hostile body would end in a traceback instead of being passed on."""
    for depth in (200, 250, 260, 500, 900, 1000, 1020, 1100, 3000, 100_000):
        raw = b'{"x":' + opening * depth + b"1" + closing * depth + b"}"
        if depth <= 200:
            assert key(raw)
        else:
            try:
                key(raw)
            except Refused as refused:
                assert refused.reason is Reason.INVALID_JSON
            else:
                assert depth < 260


@pytest.mark.parametrize(
    ("raw", "same"),
    [
        ('{"a":1,"b":2}', '{"b":2,"a":1}'),
        ('{"a":1}', ' { "a" :\n1\t} \r\n'),
        ('{"a":"é"}', '{"a":"\\u00e9"}'),
        ('{"a":"🚀"}', '{"a":"\\ud83d\\ude80"}'),
        ('{"a":"/"}', '{"a":"\\/"}'),
        ('{"\\u0061":1}', '{"a":1}'),
        ('{"a":1.50}', '{"a":1.5}'),
        ('{"a":1e2}', '{"a":100.0}'),
        (
            '{"sampling_params":{"a":1,"b":2},"text":"x"}',
            '{"text":"x","sampling_params":{"b":2,"a":1}}',
        ),
        ('{"temperature":-0}', '{"temperature":0.0}'),
    ],
)
def test_same_call(raw: str, same: str) -> None:
    """A client that writes JSON in another way would pay for the same samples again."""
    assert key(raw) == key(same)


@pytest.mark.parametrize("name", sorted(FLOAT_FIELDS))
@pytest.mark.parametrize("level", ['{"%s":%s}', '{"sampling_params":{"%s":%s}}'])
@pytest.mark.parametrize(
    ("whole", "real"), [("0", "0.0"), ("1", "1.0"), ("-2", "-2.0"), ("1", "1e0")]
)
def test_integer_in_a_float_field(name: str, level: str, whole: str, real: str) -> None:
    """Clients that write 0 and clients that write 0.0 would not share samples."""
    assert key(level % (name, whole)) == key(level % (name, real))


@pytest.mark.parametrize("name", sorted(FLOAT_FIELDS))
@pytest.mark.parametrize("level", ['{"%s":%s}', '{"sampling_params":{"%s":%s}}'])
def test_float_field_keeps_its_other_types(name: str, level: str) -> None:
    """A request that SGLang refuses would get the answer to a valid one."""
    values = ("1", "true", '"1"', '"1.0"', "null", "[1]", "[1.0]", "0", "false", '""', "1.0000001")
    keys = {key(level % (name, value)) for value in values} | {key("{}")}
    assert len(keys) == len(values) + 1


@pytest.mark.parametrize(
    "name",
    [
        "max_new_tokens",
        "min_new_tokens",
        "max_tokens",
        "max_completion_tokens",
        "top_k",
        "n",
        "seed",
        "sampling_seed",
        "top_logprobs_num",
        "logprob_start_len",
        "anything",
    ],
)
@pytest.mark.parametrize("level", ['{"%s":%s}', '{"sampling_params":{"%s":%s}}'])
def test_numbers_elsewhere(name: str, level: str) -> None:
    """`max_new_tokens: 8.0`, which SGLang refuses, would get the answer to 8."""
    values = ("8", "8.0", "8.5", "true", "1", "1.0", '"8"', "null")
    assert len({key(level % (name, value)) for value in values}) == len(values)


@pytest.mark.parametrize(
    "frame",
    [
        '{"messages":[{"temperature":%s}]}',
        '{"tools":[{"function":{"parameters":{"temperature":%s}}}]}',
        '{"sampling_params":{"custom_params":{"temperature":%s}}}',
        '{"chat_template_kwargs":{"temperature":%s}}',
        '{"sampling_params":[{"temperature":%s}]}',
    ],
)
def test_float_fields_are_only_parameters(frame: str) -> None:
    """`0` and `0.0` inside of content are two texts in the prompt."""
    assert key(frame % "0") != key(frame % "0.0")


@pytest.mark.parametrize(
    "frame",
    [
        '{"messages":[%s]}',
        '{"messages":[{"role":"assistant","tool_calls":[{"function":%s}]}]}',
        '{"tools":[{"type":"function","function":{"parameters":{"properties":%s}}}]}',
        '{"response_format":{"type":"json_schema","json_schema":{"schema":%s}}}',
        '{"chat_template_kwargs":%s}',
        '{"logit_bias":%s}',
        '{"sampling_params":{"custom_params":%s}}',
        '{"sampling_params":{"logit_bias":%s}}',
        '{"watermark":%s}',
        '{"x":{"sampling_params":%s}}',
    ],
)
def test_order_below_is_content(frame: str) -> None:
    """Templates and grammars see the order, so the answer to another order is a wrong hit."""
    assert key(frame % '{"a":1,"b":2}') != key(frame % '{"b":2,"a":1}')


@pytest.mark.parametrize(
    ("raw", "other"),
    [
        ('{"a":[1,2]}', '{"a":[2,1]}'),
        ('{"a":[]}', '{"a":null}'),
        ('{"a":{}}', '{"a":[]}'),
        ('{"a":""}', '{"a":null}'),
        ('{"a":0}', '{"a":false}'),
        ('{"a":null}', "{}"),
        ('{"sampling_params":null}', "{}"),
        ('{"sampling_params":{}}', "{}"),
        ('{"sampling_params":{}}', '{"sampling_params":null}'),
        ('{"sampling_params":{"temperature":1.0}}', '{"sampling_params":{}}'),
        ('{"sampling_params":{"temperature":null}}', '{"sampling_params":{}}'),
        ('{"sampling_params":{"temperature":null}}', '{"sampling_params":{"temperature":1.0}}'),
        ('{"sampling_params":{"temperature":0}}', '{"temperature":0}'),
        ('{"a":"é"}', '{"a":"e\\u0301"}'),
        ('{"a":"a"}', '{"a":"A"}'),
        ('{"a":"a"}', '{"a":"a "}'),
        ('{"a":"\\n"}', '{"a":"\\\\n"}'),
        ('{"a":"1"}', '{"a":1}'),
        ('{"a":["x"]}', '{"a":"x"}'),
        ('{"a":9007199254740993}', '{"a":9007199254740992}'),
        ('{"a":18446744073709551615}', '{"a":18446744073709551614}'),
        ('{"a":0.1}', '{"a":0.10000000000000002}'),
        ('{"A":1}', '{"a":1}'),
        ('{"a":1,"b":1}', '{"a":1}'),
        ('{"a,b":1}', '{"a":1,"b":1}'),
        ('{"a":"1,\\"b\\":2"}', '{"a":"1","b":2}'),
    ],
)
def test_different_calls(raw: str, other: str) -> None:
    """Two requests that SGLang may treat differently would share their answers."""
    assert key(raw) != key(other)


def test_wire_form() -> None:
    """A journal of an earlier release would no longer be found under its keys."""
    assert key('{"b":[1, 2.0],"a":"é","top_p":1,"sampling_params":{"n":2,"min_p":0}}') == (
        '{"a":"é","b":[1,2.0],"sampling_params":{"min_p":0.0,"n":2},"top_p":1.0}'.encode()
    )


def test_argument_is_left_alone() -> None:
    """What is forwarded would differ from what the client sent."""
    body: dict[str, Any] = {"b": 1, "a": {"d": 1, "c": 2}, "sampling_params": {"top_p": 1, "n": 2}}
    before = json.dumps(body)
    canonical(body)
    assert json.dumps(body) == before


def test_digest_is_what_the_journal_has() -> None:
    """Stored answers would be lost with an update that keeps the format version."""
    parts = [str(FORMAT_VERSION).encode(), "f\u00fc".encode(), b"openai-chat", b"", b"{}"]
    framed = b"".join(b"%d:%s" % (len(part), part) for part in parts)
    model = hashlib.sha256("f\u00fc".encode()).digest()[:8]
    expected = model + hashlib.sha256(framed).digest()[:24]
    assert digest("f\u00fc", "openai-chat", b"{}") == expected
    assert Digester("f\u00fc", "openai-chat").key(b"{}") == expected


# Fingerprint, dialect, tenant, content, epochs of the adapters.
Named = tuple[str, str, bytes, bytes, str]
PARTS: list[Named] = [
    ("", "", b"", b"", ""),
    ("ab", "", b"", b"", ""),
    ("a", "b", b"", b"", ""),
    ("a", "", b"b", b"", ""),
    ("a", "", b"", b"b", ""),
    ("a", "", b"", b"", "b"),
    ("", "ab", b"", b"", ""),
    ("", "a", b"b", b"", ""),
    ("", "a", b"", b"b", ""),
    ("", "", b"ab", b"", ""),
    ("", "", b"a", b"b", ""),
    ("", "", b"", b"ab", ""),
    ("", "", b"", b"a", "b"),
    ("", "", b"", b"", "ab"),
    ("1:b", "", b"", b"", ""),
    ("", "1:b", b"", b"", ""),
    ("", "", b"1:b", b"", ""),
    ("", "", b"", b"1:b", ""),
    ("", "", b"", b"", "1:b"),
    ("", "", b"", b"a1:b", ""),
    ("", "", b"", b"a", "1:b"),
    ("0:", "", b"", b"", ""),
    ("", "0:", b"", b"", ""),
    ("0:0:", "", b"", b"", ""),
    ("", "", b"", b"0:", ""),
    ("", "", b"", b"raw", ""),
    ("", "", b"", b"raw", "a"),
]


def test_digest_parts_do_not_run_together() -> None:
    """One model's, API's, client's or adapter's answer would be given as another's."""
    names = {Digester(*begun).key(content, adapters) for *begun, content, adapters in PARTS}
    assert len(names) == len(PARTS)
    assert {len(name) for name in names} == {32}


def test_names_of_bodies_do_not_run_together() -> None:
    """A body would be answered with what another model, client or adapter said to it."""
    names = {Digester(*begun, adapters).raw(content) for *begun, content, adapters in PARTS}
    assert len(names) == len(PARTS)
    assert {len(name) for name in names} == {16}


def test_all_adapters_name_a_body_and_only_those_of_a_call_its_pool() -> None:
    """A body would be answered with what an adapter said that is no more; or, the other way, new
    weights of one adapter would cost the answers of all."""
    before, after = Digester("f", "chat", b"", "x=1"), Digester("f", "chat", b"", "x=2")
    assert before.raw(b"{}") != after.raw(b"{}")
    assert before.key(b"{}") == after.key(b"{}") == digest("f", "chat", b"{}")
    assert before.key(b"{}", "x=1") != after.key(b"{}", "x=2")


def test_a_digester_can_be_used_again() -> None:
    """What was named before would change the name of what comes after it."""
    digester = Digester("f", "chat", b"me", "x=1")
    first = digester.key(b"a"), digester.key(b"a", "x"), digester.raw(b"a")
    digester.key(b"b", "y"), digester.raw(b"b")
    assert (digester.key(b"a"), digester.key(b"a", "x"), digester.raw(b"a")) == first


@pytest.mark.parametrize("fingerprint", ["", "f", "f\u00fc", "0" * 64])
def test_keys_begin_with_their_model(fingerprint: str) -> None:
    """A clear of one model would take others' answers away, or leave its own."""
    assert prefix(fingerprint) == hashlib.sha256(fingerprint.encode()).digest()[:8]
    for tenant, content, adapters in [(b"", b"", ""), (b"t", b"{}", ""), (b"", b"{}", "a")]:
        key = Digester(fingerprint, "chat", tenant).key(content, adapters)
        assert key.startswith(prefix(fingerprint))
        assert not key.startswith(prefix(f"{fingerprint}x"))


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a":18446744073709551615}', 18446744073709551615),
        (b'{"a":-9223372036854775808}', -9223372036854775808),
        (b'{"a":"18446744073709551616"}', "18446744073709551616"),
        (b'{"a":"x 123456789012345678901234567890, y"}', "x 123456789012345678901234567890, y"),
        (b'{"a":18446744073709551616.0}', 18446744073709551616.0),
        (b'{"a":1e25}', 1e25),
        (b'{"a":0.00012345678901234567}', 0.00012345678901234567),
        (b'{"a":1e-00000000000000000001}', 0.1),
        (b'{"a":"\\u003a \\"b\\":"}', ': "b":'),
        (b'{"a":"\\\\u003a"}', "\\u003a"),
        (b'{"a":"\\u0031\\u0030"}', "10"),
    ],
)
def test_looks_like_what_is_refused(raw: bytes, value: Any) -> None:
    """Text that looks like a repeated key, or like an integer that is too long, would never hit."""
    assert parse(raw) == {"a": value}
    # ... beside an integer that is one.
    assert refusal(raw[:-1] + b',"b":18446744073709551616}') is Reason.INVALID_JSON
    assert refusal(raw[:-1] + b',"a":1}') is Reason.DUPLICATE_KEY


def test_canonical_each() -> None:
    """A prompt of a list would not share its pool with the same prompt alone."""
    content = {
        "text": ["50% off", "b", "c:%b"],
        "sampling_params": [{"top_p": 1, "a": 2}, {"a": "%d"}, None],
        "100%": {"y": 1, "x": "%s"},
        "temperature": 1,
        "a": [1, 2],
    }
    assert canonical_each(content, ("sampling_params", "text")) == [
        canonical({**content, "text": text, "sampling_params": params})
        for text, params in zip(content["text"], content["sampling_params"], strict=True)
    ]
