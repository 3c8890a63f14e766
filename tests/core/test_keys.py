"""Canonical bytes and digests."""

from __future__ import annotations

import json
from typing import Any

from sglang_cached_addon.core.keys import (
    FLOAT_FIELDS,
    FORMAT_VERSION,
    Digester,
    canonical,
    canonical_each,
    keeps_to_the_rule,
    parse,
    write,
    write_by_the_rule,
    written,
)
from sglang_cached_addon.core.policy import Reason, Refused


def key(raw: str | bytes) -> bytes:
    """The canonical bytes of a body as it comes."""
    return canonical(parse(raw.encode() if isinstance(raw, str) else raw))


def refusal(raw: bytes) -> Reason | None:
    """Why a body is not looked up; None if it is."""
    try:
        key(raw)
    except Refused as refused:
        return refused.reason
    return None


NOT_JSON = [
    b"", b" ", b"{", b"{}{}", b"{} x", b"{'a':1}", b'{"a":1,}', b'{"a":1 /* */}', b"{a:1}",
    b'{"a":01}', b'{"a":+1}', b'{"a":.5}', b'{"a":1.}', b'{"a":0x1}', b'{"a":NaN}',
    b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1e400}', b'{"a":-1e400}',
    b'{"temperature":1e400}', b'{"a":1' + b"0" * 400 + b"}",
    b'{"temperature":1' + b"0" * 400 + b"}", b'{"a":1' + b"0" * 5000 + b"}",
    b'{"a":18446744073709551616}', b'{"a":-9223372036854775809}',
    b'{"messages":[{"a":18446744073709551616}]}', b'{"a":"\\ud800"}', b'{"a":"\\udc00\\ud800"}',
    b'{"\\ud800":1}', b'{"a":"\n"}', b'{"a":"\x00"}', b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}',
    b'{"a":"\xc0\xaf"}', b"\xef\xbb\xbf{}", "{}".encode("utf-16"), "{}".encode("utf-16-le"),
    "{}".encode("utf-16-be"), "{}".encode("utf-32"), b"{}\x00", b"\x00{}",
]  # fmt: skip
NOT_AN_OBJECT = [b"[]", b'[{"text":"a"}]', b'"a"', b"1", b"null", b"true"]
REPEATED_KEY = [
    b'{"a":1,"a":2}', b'{"a":1,"a":1}', b'{"a":1,"\\u0061":2}', b'{"a":1,"b":2,"a":null}',
    b'{"sampling_params":{"temperature":0,"temperature":1}}',
    b'{"messages":[{"content":"a","content":"b"}]}', b'{"a":[[[{"b":{"c":1,"c":1}}]]]}',
    b'{"rid":"x","rid":"y"}', b'{"":1,"":2}',
]  # fmt: skip


def test_refused_bodies() -> None:
    """What SGLang refuses, or might read as another value, is not looked up."""
    for bodies, reason in (
        (NOT_JSON, Reason.INVALID_JSON),
        (NOT_AN_OBJECT, Reason.MALFORMED),
        (REPEATED_KEY, Reason.DUPLICATE_KEY),
    ):
        for raw in bodies:
            assert refusal(raw) is reason, raw


def test_deep_nesting() -> None:
    """A body that is nested too deeply is refused like one that is not JSON."""
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        for depth in (200, 250, 260, 500, 900, 1000, 1020, 1100, 3000, 100_000):
            reason = refusal(b'{"x":' + opening * depth + b"1" + closing * depth + b"}")
            allowed = {None} if depth <= 200 else {Reason.INVALID_JSON}
            assert reason in (allowed | {None} if depth < 260 else allowed), (opening, depth)


def test_looks_like_what_is_refused() -> None:
    """Text that looks like a repeated key, or like an integer that is too long, is read."""
    for raw, value in [
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
    ]:
        assert parse(raw) == {"a": value}, raw
        # ... and what is to be refused is seen beside it.
        assert refusal(raw[:-1] + b',"b":18446744073709551616}') is Reason.INVALID_JSON, raw
        assert refusal(raw[:-1] + b',"a":1}') is Reason.DUPLICATE_KEY, raw


def test_same_call() -> None:
    """Two spellings of one body have one key."""
    for raw, same in [
        ('{"a":1,"b":2}', '{"b":2,"a":1}'),
        ('{"a":1}', ' { "a" :\n1\t} \r\n'),
        ('{"a":"é"}', '{"a":"\\u00e9"}'),
        ('{"a":"🚀"}', '{"a":"\\ud83d\\ude80"}'),
        ('{"a":"/"}', '{"a":"\\/"}'),
        ('{"\\u0061":1}', '{"a":1}'),
        ('{"a":1.50}', '{"a":1.5}'),
        ('{"a":1e2}', '{"a":100.0}'),
        ('{"a":1E+16}', '{"a":10000000000000000.0}'),
        ('{"a":0.00000012}', '{"a":1.2e-7}'),
        (
            '{"sampling_params":{"a":1,"b":2},"text":"x"}',
            '{"text":"x","sampling_params":{"b":2,"a":1}}',
        ),
        ('{"temperature":-0}', '{"temperature":0.0}'),
    ]:
        assert key(raw) == key(same), raw


LEVELS = ('{"%s":%s}', '{"sampling_params":{"%s":%s}}')


def test_numbers_of_float_fields() -> None:
    """In a parameter that is a float an integer is that float, and other types stay what they
    are."""
    others = ("1", "true", '"1"', '"1.0"', "null", "[1]", "[1.0]", "0", "false", '""', "1.0000001")
    for name in FLOAT_FIELDS:
        for level in LEVELS:
            for whole, real in (("0", "0.0"), ("1", "1.0"), ("-2", "-2.0"), ("1", "1e0")):
                assert key(level % (name, whole)) == key(level % (name, real)), (name, whole)
            keys = {key(level % (name, value)) for value in others} | {key("{}")}
            assert len(keys) == len(others) + 1, name


def test_numbers_elsewhere() -> None:
    """In other fields an integer is no float: SGLang refuses `max_new_tokens: 8.0`."""
    values = ("8", "8.0", "8.5", "true", "1", "1.0", '"8"', "null")
    for name in ("max_new_tokens", "max_tokens", "top_k", "n", "seed", "anything"):
        for level in LEVELS:
            assert len({key(level % (name, value)) for value in values}) == len(values), name
    for frame in (
        '{"messages":[{"temperature":%s}]}',
        '{"tools":[{"function":{"parameters":{"temperature":%s}}}]}',
        '{"sampling_params":{"custom_params":{"temperature":%s}}}',
        '{"chat_template_kwargs":{"temperature":%s}}',
        '{"sampling_params":[{"temperature":%s}]}',
    ):
        assert key(frame % "0") != key(frame % "0.0"), frame


def test_order_below_is_content() -> None:
    """Templates and grammars see the order of members: another order is another call."""
    for frame in (
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
    ):
        assert key(frame % '{"a":1,"b":2}') != key(frame % '{"b":2,"a":1}'), frame


DIFFERENT = [
    "{}", '{"a":1}', '{"A":1}', '{"a":[1,2]}', '{"a":[2,1]}', '{"a":[]}', '{"a":null}', '{"a":{}}',
    '{"a":""}', '{"a":0}', '{"a":false}', '{"a":1,"b":1}', '{"a,b":1}', '{"a":"1"}',
    '{"a":"1","b":2}', '{"a":"1,\\"b\\":2"}', '{"a":"é"}', '{"a":"e\\u0301"}', '{"a":"a"}',
    '{"a":"A"}', '{"a":"a "}', '{"a":"\\n"}', '{"a":"\\\\n"}', '{"a":["x"]}', '{"a":"x"}',
    '{"a":"1e2"}', '{"a":"100.0"}', '{"a":100.0}', '{"a":0.1}', '{"a":0.10000000000000002}',
    '{"a":9007199254740993}', '{"a":9007199254740992}', '{"a":18446744073709551615}',
    '{"a":18446744073709551614}', '{"sampling_params":null}', '{"sampling_params":{}}',
    '{"sampling_params":{"temperature":1.0}}', '{"sampling_params":{"temperature":null}}',
    '{"sampling_params":{"temperature":0}}', '{"temperature":0}',
]  # fmt: skip


def test_different_calls() -> None:
    """Requests that SGLang may treat differently have a key each."""
    assert len({key(raw) for raw in DIFFERENT}) == len(DIFFERENT)


FLOATS = {
    # how a client may write it: how keys have it
    "0.0": "0.0", "-0.0": "-0.0", "1.0": "1.0", "1e2": "100.0", "0.0001": "0.0001",
    "0.30000000000000004": "0.30000000000000004", "1125899906842624.25": "1125899906842624.2",
    "999999999999999.9": "999999999999999.9", "9999999999999998.0": "9999999999999998.0",
    "1e16": "1e+16", "-12345678901234567.0": "-1.2345678901234568e+16",
    "100000000000000000000.0": "1e+20", "1.7976931348623157E308": "1.7976931348623157e+308",
    "0.00001": "0.00001", "-1e-5": "-0.00001", "0.000012345": "0.000012345",
    "0.0000099": "9.9e-6", "0.0000001": "1e-7", "-1.5e-10": "-1.5e-10", "5e-324": "5e-324",
}  # fmt: skip


def test_floats_are_written_by_a_rule() -> None:
    """Keys have floats as the rule says, whichever way this version of orjson writes them."""
    for raw, text in FLOATS.items():
        assert written(float(raw)) == text, raw
        value = {"a": [{"b": float(raw)}, float(raw), "1e5", 1, None, True]}
        expected = b'{"a":[{"b":%b},%b,"1e5",1,null,true]}' % (text.encode(), text.encode())
        assert write(value) == expected, raw
        assert write_by_the_rule(value) == expected, raw
        assert key(f'{{"sampling_params":{{"x":{raw}}},"top_p":{raw}}}') == (
            f'{{"sampling_params":{{"x":{text}}},"top_p":{text}}}'.encode()
        ), raw


def test_versions_of_orjson() -> None:
    """A version that writes any kind of float in another way is not used for keys."""
    ours = write_by_the_rule
    assert keeps_to_the_rule(ours)
    for name, dumps in {
        "large ones without a plus": lambda value: ours(value).replace(b"e+", b"e"),
        "large ones without an exponent": lambda value: ours(value).replace(b"1e+16", b"1" * 17),
        "small ones with an exponent": lambda value: ours(value).replace(b"0.000015", b"1.5e-5"),
        "exponents of two digits": lambda value: ours(value).replace(b"e-6", b"e-06"),
        "negative zeros": lambda value: ours(value).replace(b"-0.0,", b"0.0,"),
        "halves to the other side": lambda value: ours(value).replace(b"24.2,", b"24.3,"),
    }.items():
        assert not keeps_to_the_rule(dumps), name


GOLDEN = {
    b'{"text":"a"}': ("b59eb57666f94baa6a86d085d6bf629a3139ba3fdb9686f757ca7a52edb0653c"),
    b'{"text":["a"],"sampling_params":{"temperature":0,"max_new_tokens":8}}': (
        "b59eb57666f94baabaa187e42447015d86d4f0780d5f2016affab6038cfee366"
    ),
    b'{"messages":[{"role":"user","content":"\xc3\xa9\\n\\"/"}],"seed":18446744073709551615}': (
        "b59eb57666f94baaf4782973464e103d2442aac3b0c2369162cf7f99e3645beb"
    ),
    b'{"x":[0.1,1e16,1e-5,1e-6,-0.0,1e300,1.0,1],"y":{"b":null,"a":false}}': (
        "b59eb57666f94baa90e68d160c0a70e8451aece38ee8d0034381f5a11147755e"
    ),
}


def test_keys_do_not_change() -> None:
    """Within one format version, a call has the same key for ever: its answers are stored under
    it."""
    assert FORMAT_VERSION == 4, "the digests below are of this version"
    for raw, expected in GOLDEN.items():
        content = canonical(parse(raw))
        assert Digester("f\u00fc", "chat", b"t").key(content, "x=1").hex() == expected, raw
    assert (
        Digester("f\u00fc", "chat", b"t", "x=1").raw(b"{}").hex()
        == "16450652a91babed597014f4754c81f4"
    )


def test_wire_form() -> None:
    """The canonical bytes are compact JSON in which only the top level is sorted."""
    assert key('{"b":[1, 2.0],"a":"é","top_p":1,"sampling_params":{"n":2,"min_p":0}}') == (
        '{"a":"é","b":[1,2.0],"sampling_params":{"min_p":0.0,"n":2},"top_p":1.0}'.encode()
    )


def test_argument_is_left_alone() -> None:
    """The body stays as the client sent it, for it is forwarded."""
    body: dict[str, Any] = {"b": 1, "a": {"d": 1, "c": 2}, "sampling_params": {"top_p": 1, "n": 2}}
    before = json.dumps(body)
    canonical(body)
    assert json.dumps(body) == before


# Fingerprint, dialect, tenant, content, epochs of the adapters.
Named = tuple[str, str, bytes, bytes, str]
PARTS: list[Named] = [
    ("", "", b"", b"", ""), ("ab", "", b"", b"", ""), ("a", "b", b"", b"", ""),
    ("a", "", b"b", b"", ""), ("a", "", b"", b"b", ""), ("a", "", b"", b"", "b"),
    ("", "ab", b"", b"", ""), ("", "a", b"b", b"", ""), ("", "a", b"", b"b", ""),
    ("", "", b"ab", b"", ""), ("", "", b"a", b"b", ""), ("", "", b"", b"ab", ""),
    ("", "", b"", b"a", "b"), ("", "", b"", b"", "ab"), ("1:b", "", b"", b"", ""),
    ("", "1:b", b"", b"", ""), ("", "", b"1:b", b"", ""), ("", "", b"", b"1:b", ""),
    ("", "", b"", b"", "1:b"), ("", "", b"", b"a1:b", ""), ("", "", b"", b"a", "1:b"),
    ("0:", "", b"", b"", ""), ("", "0:", b"", b"", ""), ("0:0:", "", b"", b"", ""),
    ("", "", b"", b"0:", ""), ("", "", b"", b"raw", ""), ("", "", b"", b"raw", "a"),
]  # fmt: skip


def test_parts_do_not_run_together() -> None:
    """Each model, API, client and adapter has names of its own, for pools and for bodies."""
    pools = {Digester(*begun).key(content, adapters) for *begun, content, adapters in PARTS}
    bodies = {Digester(*begun, adapters).raw(content) for *begun, content, adapters in PARTS}
    assert len(pools) == len(bodies) == len(PARTS)
    assert {len(name) for name in pools} == {32}
    assert {len(name) for name in bodies} == {16}


def test_all_adapters_name_a_body_and_only_those_of_a_call_its_pool() -> None:
    """New weights of one adapter give each body a new name, and leave the pools of other calls
    alone."""
    before, after = Digester("f", "chat", b"", "x=1"), Digester("f", "chat", b"", "x=2")
    assert before.raw(b"{}") != after.raw(b"{}")
    assert before.key(b"{}") == after.key(b"{}") == Digester("f", "chat").key(b"{}")
    assert before.key(b"{}", "x=1") != after.key(b"{}", "x=2")


def test_a_digester_can_be_used_again() -> None:
    """A name does not depend on what was named before it."""
    digester = Digester("f", "chat", b"me", "x=1")
    first = digester.key(b"a"), digester.key(b"a", "x"), digester.raw(b"a")
    digester.key(b"b", "y"), digester.raw(b"b")
    assert (digester.key(b"a"), digester.key(b"a", "x"), digester.raw(b"a")) == first


def test_canonical_each() -> None:
    """A prompt of a list has the canonical bytes of the same prompt alone."""
    content = {
        "text": ["50% off", "b", "c:%b"],
        "sampling_params": [{"top_p": 1, "a": 2}, {"a": "%d", "b": 1e17}, None],
        "100%": {"y": 1, "x": "%s"},
        "temperature": 1,
        "a": [1, 2],
    }
    assert canonical_each(content, ("sampling_params", "text")) == [
        canonical({**content, "text": text, "sampling_params": params})
        for text, params in zip(content["text"], content["sampling_params"], strict=True)
    ]
