"""The words that all dialects share."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from sglang_cached_addon.core.call import Call, Mint
from sglang_cached_addon.core.policy import MAX_N, Reason, Refused
from sglang_cached_addon.dialects import base


def minter() -> Mint:
    numbers = itertools.count(1)
    return lambda: f"{next(numbers):032x}"


@pytest.mark.parametrize(
    ("shortfalls", "n", "order"),
    [
        ((1,), 1, (0,)),
        ((3,), 3, (0,)),
        ((2, 2), 2, (0, 1)),
        ((0, 2), 2, (1,)),
        ((2, 0, 2), 2, (0, 2)),
        ((1, 2), 1, (0, 1, 1)),
        ((3, 0, 1), 1, (0, 0, 0, 2)),
        ((0, 0, 1), 1, (2,)),
    ],
)
def test_fill_covers_every_shortfall(
    shortfalls: tuple[int, ...], n: int, order: tuple[int, ...]
) -> None:
    """Upstream would be asked for more than is short, or for less."""
    assert base.trimmed_n(shortfalls) == n
    assert base.fill_order(shortfalls, n) == order
    assert tuple(order.count(i) * n for i in range(len(shortfalls))) == shortfalls


@pytest.mark.parametrize(
    ("body", "content"),
    [
        ({"a": 1, "b": "x"}, {"a": 1}),
        ({"a": 1, "b": None}, {"a": 1, "b": None}),
        ({"d": None}, {}),
        ({"d": {"x": "y", "z": "w"}}, {}),
        ({"d": {"x": True}}, {}),
        ({"d": {}}, {}),
        ({"d": {"x": 1}}, {"d": {"x": 1}}),
        ({"d": {"x": "y", "z": True}}, {"d": {"x": "y", "z": True}}),
        ({"d": {"x": {}}}, {"d": {"x": {}}}),
        ({"a": None}, {"a": None}),
        ({"b": 1}, {"b": 1}),
        ({"b": True}, {"b": True}),
        ({"b": ["x"]}, {"b": ["x"]}),
        ({"c": 1}, {}),
        ({"c": True}, {"c": True}),
        ({"c": 1.0}, {"c": 1.0}),
        ({"B": "x"}, {"B": "x"}),
    ],
)
def test_content_fields(body: dict[str, Any], content: dict[str, Any]) -> None:
    """A value that SGLang refuses would be left out of the key, and so be answered."""
    table = {"b": (str,), "c": (int,), "d": (dict, base.NULL)}
    assert base.content_fields(body, table) == content


@pytest.mark.parametrize(("holder", "n"), [({}, 1), ({"n": 1}, 1), ({"n": MAX_N}, MAX_N)])
def test_n(holder: dict[str, Any], n: int) -> None:
    """A client would get another number of samples."""
    assert base.read_n(holder) == n


@pytest.mark.parametrize("n", [0, -1, MAX_N + 1, True, False, None, 1.0, 2.5, "2", [2], {}])
def test_n_that_is_upstreams_to_judge(n: Any) -> None:
    """An invalid `n` would be answered from the cache, or a huge one stop the proxy."""
    with pytest.raises(Refused) as caught:
        base.read_n({"n": n})
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("session_params", {"id": "x"}, Reason.STATE),
        ("session_params", {}, Reason.STATE),
        ("previous_response_id", "resp_1", Reason.STATE),
        ("bootstrap_host", "10.0.0.1", Reason.DISAGGREGATION),
        ("bootstrap_port", 0, Reason.DISAGGREGATION),
        ("bootstrap_room", 1, Reason.DISAGGREGATION),
        ("bootstrap_pair_key", "x", Reason.DISAGGREGATION),
        ("decode_tp_size", 1, Reason.DISAGGREGATION),
        ("need_wait_for_mm_inputs", False, Reason.DISAGGREGATION),
        ("num_items_assigned", [], Reason.DISAGGREGATION),
        ("encoder_urls", [], Reason.DISAGGREGATION),
        ("http_worker_ipc", "", Reason.DISAGGREGATION),
        ("kv_hints", {}, Reason.DISAGGREGATION),
    ],
)
def test_unstorable(field: str, value: Any, reason: Reason) -> None:
    """A call that depends on more than its body would be answered from the cache."""
    with pytest.raises(Refused) as caught:
        base.refuse_unstorable({"text": "a", field: value})
    assert caught.value.reason is reason


@pytest.mark.parametrize("stream", [1, 0, "true", "false", [], None])
def test_odd_stream(stream: Any) -> None:
    """SGLang refuses what a laxer reader would take for a stream, or for none."""
    with pytest.raises(Refused) as caught:
        base.is_stream({"stream": stream}, ())
    assert caught.value.reason is Reason.MALFORMED


def test_unstreamable() -> None:
    """A field that a stream answers in another form would be lost in the other."""
    assert base.is_stream({"stream": True, "a": False, "b": 1}, ("a",))
    assert not base.is_stream({"a": True}, ("a",))
    with pytest.raises(Refused) as caught:
        base.is_stream({"stream": True, "a": True}, ("a",))
    assert caught.value.reason is Reason.STREAM


@pytest.mark.parametrize(
    "body", [{}, {"stream": False}, {"session_params": None, "kv_hints": None}]
)
def test_storable(body: dict[str, Any]) -> None:
    """An ordinary call would never be a hit."""
    base.refuse_unstorable(body)


@pytest.mark.parametrize(
    ("rid", "n", "batched", "size", "rids"),
    [
        (None, 1, False, 1, ()),
        ("x", 1, False, 1, ("x",)),
        ("", 1, False, 1, ("",)),
        ("x", 2, False, 1, ()),
        ("x", 1, True, 1, ("x_0",)),
        ("x", 1, True, 3, ("x_0", "x_1", "x_2")),
        ("x", 2, True, 3, ()),
        (["x", "y"], 1, True, 2, ("x", "y")),
        (["x", "y"], 2, True, 2, ()),
    ],
)
def test_rids(rid: Any, n: int, batched: bool, size: int, rids: tuple[str, ...]) -> None:
    """A client that names its requests would not find its ids in the answer."""
    assert base.read_rids({"rid": rid}, n, batched, size) == rids


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(
    ("rid", "batched", "size"),
    [
        (["x"], False, 1),
        (["x"], True, 2),
        (["x", "y", "z"], True, 2),
        ([], True, 1),
        (["x", "x"], True, 2),
        (["x", None], True, 2),
        (["x", 1], True, 2),
        (1, False, 1),
        (True, False, 1),
        ({}, False, 1),
        (1.5, True, 2),
    ],
)
def test_rids_that_are_upstreams_to_judge(rid: Any, batched: bool, size: int, n: int) -> None:
    """SGLang's refusal of a `rid` would be hidden by a stored answer."""
    with pytest.raises(Refused) as caught:
        base.read_rids({"rid": rid}, n, batched, size)
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("call", "order", "n", "sent", "known"),
    [
        (Call({}, (b"",), 1, False, ("x",)), (0,), 1, "%s1", {"x": "%s1"}),
        (Call({}, (b"",), 3, False), (0,), 3, "%s1", {}),
        (Call({}, (b"",), 3, False), (0,), 1, "%s1", {}),
        (Call({}, (b"",) * 2, 1, True, ("a", "b")), (0, 1), 1, ["%s1", "%s2"], "both"),
        (Call({}, (b"",) * 2, 1, True, ("a", "b")), (1,), 1, ["%s1"], {"b": "%s1"}),
        (Call({}, (b"",) * 2, 2, True), (0, 1, 1), 1, ["%s1", "%s2", "%s3"], {}),
        (Call({}, (b"",) * 2, 2, True), (0, 1), 2, "%s1", {}),
    ],
)
def test_mint_rids(call: Call, order: tuple[int, ...], n: int, sent: Any, known: Any) -> None:
    """SGLang would refuse the second of two calls in flight that share a `rid`."""

    def minted(value: Any) -> Any:
        return value.replace("%s", "0" * 31)

    body: dict[str, Any] = {"rid": "anything"}
    found = base.mint_rids(call, body, order, n, minter())
    assert body["rid"] == ([minted(s) for s in sent] if isinstance(sent, list) else minted(sent))
    if known == "both":
        known = {"a": "%s1", "b": "%s2"}
    assert found == {rid: minted(unique) for rid, unique in known.items()}


@pytest.mark.parametrize("body", [{}, {"rid": None}])
def test_no_rid(body: dict[str, Any]) -> None:
    """A body would be written anew for no reason."""
    before = dict(body)
    assert base.mint_rids(Call({}, (b"",), 1, False), body, (0,), 1, minter()) == {}
    assert body == before


def test_take() -> None:
    """A prompt would be sent with another prompt's parameters."""
    lists = {"p": ["a", "b", "c"], "q": "one for all", "r": None, "s": [1, 2, 3]}
    body: dict[str, Any] = dict(lists)
    base.take(body, ("p", "q", "r", "absent"), (2, 0, 0))
    assert body == {"p": ["c", "a", "a"], "q": "one for all", "r": None, "s": [1, 2, 3]}
    assert lists["p"] == ["a", "b", "c"]


PICTURE = "iVBORw0KGgo" + "A" * 80


@pytest.mark.parametrize(
    "value",
    [
        None,
        f"data:image/png;base64,{PICTURE}",
        "data:text/plain,x",
        PICTURE,
        PICTURE + "==",
        "/9j/" + "A" * 80,
        {"url": f"data:image/png;base64,{PICTURE}", "detail": "low"},
        [PICTURE, None, [PICTURE]],
        [],
        {"format": "processor_output", "pixels": 1},
        {"data": PICTURE, "format": "wav"},
    ],
)
def test_media_in_the_body(value: Any) -> None:
    """Pictures that are part of the request would never be a hit."""
    assert not base.media_refusal(value)


@pytest.mark.parametrize(
    "value",
    [
        "http://example.com/a.png",
        "https://example.com/a.png",
        "HTTPS://EXAMPLE.COM/A.PNG",
        "file:///tmp/a.png",
        "/tmp/a.png",
        "a.png",
        "a",
        "",
        "DATA:image/png;base64,xx",
        " data:image/png;base64,xx",
        "/tmp/" + "x" * 80 + ".png",
        "s3://bucket/" + "x" * 80,
        "/data/" + "x" * 80,
        PICTURE + "-_",
        {"url": "http://example.com/a.png"},
        {"url": {"url": "/tmp/a.png"}},
        [PICTURE, "http://example.com/a.png"],
        [[PICTURE, ["/tmp/a.png"]]],
        1,
        True,
    ],
)
def test_media_elsewhere(value: Any) -> None:
    """A picture that has changed since would get the answer to the old one."""
    assert base.media_refusal(value)


@pytest.mark.parametrize(
    ("meta", "mixed"),
    [
        ({"weight_versions": [{}, {}]}, True),
        ({"weight_versions": [{}]}, False),
        ({"weight_versions": []}, False),
        ({"weight_versions": None}, False),
        ({}, False),
        (None, False),
        ([], False),
        ("weight_versions", False),
    ],
)
def test_weights(meta: Any, mixed: bool) -> None:
    """Half of a stored answer would be another model's."""
    assert base.weights_refusal(meta) is (Reason.MIXED_WEIGHTS if mixed else None)


@pytest.mark.parametrize(
    ("metas", "versions"),
    [
        ([], set()),
        ([{"weight_version": "a"}], {"a"}),
        ([{"weight_version": "a"}, {"weight_version": "a"}], {"a"}),
        ([{"weight_version": "a"}, {"weight_version": "b"}], {"a", "b"}),
        ([{"weight_version": "a"}, {}, None, [], "weight_version"], {"a"}),
        ([{"weight_version": ""}], {""}),
        ([{"weight_version": value} for value in (None, 1, True, ["a"], {})], set()),
        ([{"weight_versions": [{"version": "a"}]}], set()),
    ],
)
def test_weight_versions(metas: list[Any], versions: set[str]) -> None:
    """An answer of other weights would be stored, or one that does not tell not be."""
    assert base.weight_versions(metas) == versions


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("stop", None),
        ("length", None),
        ("tool_calls", None),
        ("abort", Reason.ABORT),
        (None, Reason.UNFINISHED),
        ({"type": "stop"}, Reason.UNFINISHED),
        (1, Reason.UNFINISHED),
    ],
)
def test_finish(kind: Any, reason: Reason | None) -> None:
    """A cut answer would be repeated for ever."""
    assert base.finish_refusal(kind) is reason


def test_dump_is_compact() -> None:
    """Stored answers would not be byte for byte those of SGLang."""
    assert base.dump({"a": [1, "ü"], "b": None}) == '{"a":[1,"ü"],"b":null}'.encode()
