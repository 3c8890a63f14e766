"""Reading request bodies."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_cached_addon.core.policy import MAX_N, MAX_SAMPLES, Reason, Refused
from sglang_cached_addon.dialects import reading
from sglang_cached_addon.dialects.base import NULL
from tests.tables import each


@each(
    ("body", "content"),
    [
        ({"a": 1, "b": "x"}, {"a": 1}), ({"a": 1, "b": None}, {"a": 1, "b": None}),
        ({"d": None}, {}), ({"d": {"x": "y", "z": "w"}}, {}), ({"d": {"x": True}}, {}),
        ({"d": {}}, {}), ({"d": {"x": 1}}, {"d": {"x": 1}}),
        ({"d": {"x": "y", "z": True}}, {"d": {"x": "y", "z": True}}),
        ({"d": {"x": {}}}, {"d": {"x": {}}}), ({"a": None}, {"a": None}), ({"b": 1}, {"b": 1}),
        ({"b": True}, {"b": True}), ({"b": ["x"]}, {"b": ["x"]}), ({"c": 1}, {}),
        ({"c": True}, {"c": True}), ({"c": 1.0}, {"c": 1.0}), ({"B": "x"}, {"B": "x"}),
    ],
)  # fmt: skip
def test_content_fields(body: dict[str, Any], content: dict[str, Any]) -> None:
    """A transport field is left out of the key only with a value of its type."""
    table = {"b": (str,), "c": (int,), "d": (dict, NULL)}
    assert reading.content_fields(body, table) == content


def test_n() -> None:
    """A plain `n` is read; any other is refused."""
    assert [reading.read_n(holder) for holder in ({}, {"n": MAX_N})] == [1, MAX_N]
    for n in (0, -1, MAX_N + 1, True, False, None, 1.0, "2", [2]):
        with pytest.raises(Refused) as caught:
            reading.read_n({"n": n})
        assert caught.value.reason is Reason.MALFORMED


@each(
    ("fields", "reason"),
    [
        ("session_params previous_response_id", Reason.STATE),
        ("bootstrap_host bootstrap_port bootstrap_room bootstrap_pair_key decode_tp_size "
         "need_wait_for_mm_inputs num_items_assigned encoder_urls http_worker_ipc kv_hints "
         "disagg_prefill_dp_rank kv_transfer_params", Reason.DISAGGREGATION),
    ],
)  # fmt: skip
def test_unstorable(fields: str, reason: Reason) -> None:
    """State of the server, and calls of one server to another, are refused."""
    for field in fields.split():
        for value in ("x", 0, False, [], {}, ""):
            with pytest.raises(Refused) as caught:
                reading.refuse_unstorable({"text": "a", field: value})
            assert caught.value.reason is reason, field


def test_beam_search() -> None:
    """Where `n` is the width of a beam, a call for more is no call for more of the same."""
    reading.refuse_unstorable({"text": "a", "use_beam_search": False})
    with pytest.raises(Refused) as caught:
        reading.refuse_unstorable({"text": "a", "use_beam_search": True})
    assert caught.value.reason is Reason.BEAM


def test_unstreamable() -> None:
    """A stream with a field that it answers in another form is refused; null is no stream."""
    assert not reading.is_stream({"stream": None, "a": True}, ("a",))
    assert reading.is_stream({"stream": True, "a": False, "b": 1}, ("a",))
    assert not reading.is_stream({"a": True}, ("a",))
    with pytest.raises(Refused) as caught:
        reading.is_stream({"stream": True, "a": True}, ("a",))
    assert caught.value.reason is Reason.STREAM


@each("n", [1, 2])
@each(
    ("rid", "batched", "size"),
    [
        (["x"], False, 1), ([], True, 1), (1, False, 1), (True, False, 1), ({}, False, 1),
        *((rid, True, 2) for rid in (
            ["x"], ["x", "y", "z"], ["x", "x"], ["x", None], ["x", 1], 1.5)),
    ],
)  # fmt: skip
def test_rids_that_are_upstreams_to_judge(rid: Any, batched: bool, size: int, n: int) -> None:
    """A `rid` that SGLang refuses is refused."""
    with pytest.raises(Refused) as caught:
        reading.read_rids({"rid": rid}, n, batched, size)
    assert caught.value.reason is Reason.MALFORMED


PICTURE = "iVBORw0KGgo" + "A" * 80


HERE = [
    None, f"data:image/png;base64,{PICTURE}", "data:text/plain,x", PICTURE, PICTURE + "==",
    "/9j/" + "A" * 80, {"url": f"data:image/png;base64,{PICTURE}", "detail": "low"},
    [PICTURE, None, [PICTURE]], [], {"format": "processor_output", "pixels": 1},
    {"data": PICTURE, "format": "wav"},
    {"url": PICTURE, "audio": f"data:audio/wav;base64,{PICTURE}"},
    {"file_data": f"data:application/pdf;base64,{PICTURE}", "filename": "a.pdf"},
]  # fmt: skip
ELSEWHERE = [
    "http://example.com/a.png", "https://example.com/a.png", "HTTPS://EXAMPLE.COM/A.PNG",
    "file:///tmp/a.png", "/tmp/a.png", "a.png", "a", "", "DATA:image/png;base64,xx",
    " data:image/png;base64,xx", "/tmp/" + "x" * 80 + ".png", "s3://bucket/" + "x" * 80,
    "/data/" + "x" * 80, PICTURE + "-_", {"url": "http://example.com/a.png"},
    {"url": {"url": "/tmp/a.png"}}, [PICTURE, "http://example.com/a.png"],
    [[PICTURE, ["/tmp/a.png"]]], 1, True, {"path": "/tmp/a.png"}, {"file_id": "file-1"},
    {"url": PICTURE, "audio": "http://example.com/a.wav"}, {"video": ["a.png", "b.png"]},
]  # fmt: skip


def test_media() -> None:
    """Media within the body is part of the call; media by URL or path is seen as such."""
    assert not [value for value in HERE if reading.is_elsewhere(value)]
    assert not [value for value in ELSEWHERE if not reading.is_elsewhere(value)]


def test_sound() -> None:
    """SGLang opens what is no URL as a file, where a sound is wanted."""
    for name in ("audio_data", "audio_url", "audio"):
        for value in (PICTURE, [PICTURE], {"url": PICTURE}):
            assert reading.is_elsewhere(value, name), (name, value)
        assert not reading.is_elsewhere([{"url": f"data:audio/wav;base64,{PICTURE}"}], name)
    assert reading.is_elsewhere({"url": PICTURE, "audio": PICTURE}, "video_data")
    assert not reading.is_elsewhere({"url": PICTURE}, "video_data")


def test_too_many() -> None:
    """A call for more samples than may be asked for at once is refused as too large."""
    for size, n in ((MAX_SAMPLES, 1), (1, MAX_SAMPLES), (2, MAX_SAMPLES // 2)):
        reading.refuse_too_many(size, n)
        with pytest.raises(Refused) as refused:
            reading.refuse_too_many(size + 1, n)
        assert refused.value.reason is Reason.TOO_LARGE
