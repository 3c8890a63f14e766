"""Headers, log lines and counters."""

from __future__ import annotations

import itertools
import json
import re

from sglang_cached_addon.core.cache import Sample
from sglang_cached_addon.core.outcome import NOTHING, Counters, Kind, Outcome, Saved, hit_status
from sglang_cached_addon.core.policy import Reason
from tests.tables import each

# RFC 8941, section 3.3: a token, an integer, a string; 3.1.2: a parameter's key.
TOKEN = r"[A-Za-z*][A-Za-z0-9!#$%&'*+\-.^_`|~:/]*"
VALUE = rf'(?:{TOKEN}|-?[0-9]{{1,15}}|"(?:[ !#-\[\]-~]|\\["\\])*")'
PARAMETER = r"[a-z*][a-z0-9_\-.*]*"

KEY = bytes(range(1, 33))
SHOWN = '"0102030405060708090a0b0c0d0e0f10"'
OUTCOMES = [
    Outcome(kind, have, want, reason, status, oldest, key=key)
    for kind, (have, want), reason, status, oldest, key in itertools.product(
        Kind,
        [(0, 0), (0, 1), (1, 3), (3, 3)],
        [None, *Reason],
        [200, 400, 502],
        [0.0, 7.0],
        [b"", KEY],
    )
]


def parameters(value: str) -> dict[str, str | None]:
    """The parameters of a `Cache-Status` with one member, checked against the grammar."""
    assert re.fullmatch(rf"{TOKEN}(?:; *{PARAMETER}(?:={VALUE})?)*", value), value
    name, *rest = re.split(rf"; *(?={PARAMETER}(?:[=;]|$))", value)
    assert name == "sglang-cached"
    found: dict[str, str | None] = {}
    for parameter in rest:
        key, _, text = parameter.partition("=")
        assert key not in found
        found[key] = text or None
    return found


def test_cache_status_is_a_structured_field() -> None:
    """Each `Cache-Status` is a valid structured field."""
    for outcome in OUTCOMES:
        found = parameters(outcome.cache_status)
        assert set(found) <= {"hit", "fwd", "fwd-status", "stored", "collapsed", "key", "detail"}
        assert not ("hit" in found and "fwd" in found)
        assert ("hit" in found) == (outcome.kind is Kind.HIT)
        # RFC 9211, section 2.2: `fwd` says that and why it was forwarded.
        is_forwarded = outcome.kind not in (Kind.HIT, Kind.DENIED)
        assert ("fwd" in found) == is_forwarded
        assert found.get("key") == (SHOWN if outcome.key else None)
        if "fwd-status" in found:
            assert found["fwd-status"] == str(outcome.status)
        if "stored" in found:
            assert outcome.reason is None
            assert outcome.kind in (Kind.MISS, Kind.PARTIAL)
        if outcome.reason and outcome.kind is not Kind.HIT:
            assert str(outcome.reason) in (found["detail"] or "")


HIT, MISS, PARTIAL, COLLAPSED, BYPASS, DENIED = (
    Kind.HIT, Kind.MISS, Kind.PARTIAL, Kind.COLLAPSED, Kind.BYPASS, Kind.DENIED,
)  # fmt: skip


@each(
    ("value", "outcome"),
    [
        ("hit", Outcome(HIT, 3, 3, oldest=5.0)),
        ("fwd=miss; stored", Outcome(MISS, 0, 3)),
        ("fwd=miss", Outcome(MISS, 0, 3, is_open=True)),
        ("fwd=miss; collapsed", Outcome(COLLAPSED, 0, 3)),
        ("fwd=miss; detail=abort", Outcome(MISS, 0, 1, Reason.ABORT)),
        ("fwd=miss; fwd-status=400; detail=status", Outcome(MISS, 0, 1, Reason.STATUS, 400)),
        ('fwd=partial; stored; detail="1 of 3 stored"', Outcome(PARTIAL, 1, 3)),
        (
            'fwd=partial; fwd-status=503; detail="1 of 3 stored, status"',
            Outcome(PARTIAL, 1, 3, Reason.STATUS, 503),
        ),
        (
            'fwd=partial; stored; detail="1 of 3 stored, ignored: a, b"',
            Outcome(PARTIAL, 1, 3, detail="ignored: a, b"),
        ),
        ("fwd=bypass; detail=stream", Outcome(BYPASS, reason=Reason.STREAM)),
        (f"hit; key={SHOWN}", Outcome(HIT, 1, 1, key=KEY)),
        (f"fwd=miss; stored; key={SHOWN}", Outcome(MISS, 0, 1, key=KEY)),
        (f"fwd=miss; collapsed; key={SHOWN}", Outcome(COLLAPSED, 0, 1, key=KEY)),
        (
            f'fwd=partial; fwd-status=503; key={SHOWN}; detail="1 of 3 stored, status"',
            Outcome(PARTIAL, 1, 3, Reason.STATUS, 503, key=KEY),
        ),
        (
            f"key={SHOWN}; detail=only-if-cached",
            Outcome(DENIED, 0, 1, Reason.ONLY_IF_CACHED, 504, key=KEY),
        ),
        ("detail=offline", Outcome(DENIED, 0, 3, Reason.OFFLINE, 504)),
        ("fwd=bypass; detail=http-1.0", Outcome(BYPASS, reason=Reason.HTTP_1_0)),
    ],
)
def test_cache_status(value: str, outcome: Outcome) -> None:
    """Each outcome has its header."""
    assert outcome.cache_status == f"sglang-cached; {value}"


def test_headers() -> None:
    """Only a hit has an `Age`; its status is the same in the lane and elsewhere."""
    for kind in Kind:
        headers = dict(Outcome(kind, 1, 2, Reason.OFFLINE, oldest=3.0).headers(10.5))
        assert headers["X-Cache"] == kind.name
        assert headers.get("Age") == ("7" if kind is Kind.HIT else None)
        assert parameters(headers["Cache-Status"])
    for key in (b"", KEY, b"\xff" * 32, b"\0" * 32):
        assert hit_status(key).decode() == Outcome(Kind.HIT, 1, 1, key=key).cache_status


@each(
    ("line", "outcome"),
    [
        ("hit] /generate 2/2 1.5 ms", Outcome(HIT, 2, 2)),
        ("miss] /generate 0/1 1.5 ms", Outcome(MISS, 0, 1)),
        ("partial] /generate 1/3 1.5 ms", Outcome(PARTIAL, 1, 3)),
        ("miss] /generate 0/1 1.5 ms (status)", Outcome(MISS, 0, 1, Reason.STATUS, 400)),
        ("bypass] /generate 1.5 ms (stream)", Outcome(BYPASS, reason=Reason.STREAM)),
        (
            "denied] /generate 0/1 1.5 ms (offline)",
            Outcome(DENIED, 0, 1, Reason.OFFLINE, 504, key=KEY),
        ),
    ],
)
def test_line(line: str, outcome: Outcome) -> None:
    """The line of the log says what happened."""
    assert outcome.line("/generate", 0.0015) == f"[Cache {line}"


def sample(seconds: float, tokens: int) -> Sample:
    return Sample(b"{}", 0.0, seconds, tokens)


@each(
    ("samples", "saved"),
    [
        ([], NOTHING),
        ([sample(2.0, 5)], Saved(1, 5, 2.0)),
        ([sample(2.0, 5), sample(3.0, 0), sample(0.5, 7)], Saved(3, 12, 3.0)),
    ],
)
def test_saved(samples: list[Sample], saved: Saved) -> None:
    """Of calls that ran side by side, the longest is what a hit saves."""
    assert Saved.of(iter(samples)) == saved


def test_counters() -> None:
    """Hits, misses, partial hits and bypasses are summed up, from nothing, as plain JSON."""
    counters = Counters()
    assert not any(counters.as_json().values())
    counters.samples_from_upstream += 3
    counters.add(Outcome(Kind.MISS, 0, 3))
    counters.hit(Saved.of([sample(2.0, 5), sample(2.0, 6), sample(0.5, 7)]))
    stored = Saved.of([sample(2.0, 5), sample(2.0, 6)])
    counters.add(Outcome(Kind.PARTIAL, 2, 5), stored)
    counters.add(Outcome(Kind.MISS, 0, 4, Reason.STATUS, 503))
    counters.add(Outcome(Kind.MISS, 0, 1, Reason.ABORT))
    counters.add(Outcome(Kind.DENIED, 0, 1, Reason.OFFLINE, 504))
    counters.add(Outcome(Kind.DENIED, 0, 1, Reason.ONLY_IF_CACHED, 504))
    counters.add(Outcome(Kind.COLLAPSED, 0, 1), Saved(1, 4, 9.0))
    counters.add(Outcome(Kind.COLLAPSED, 0, 1, Reason.STATUS, 503))
    counters.add(Outcome(Kind.BYPASS, reason=Reason.STREAM))
    counters.add(Outcome(Kind.BYPASS, reason=Reason.STREAM))
    counters.add(Outcome(Kind.BYPASS, reason=Reason.BEAM))
    assert json.loads(json.dumps(counters.as_json())) == {
        "hits": 1,
        "misses": 3,
        "partial_hits": 1,
        "collapsed": 2,
        "hit_rate": 1 / 9,
        "reuse_rate": 6 / 9,
        "denied": 2,
        "bypasses": {"beam": 1, "stream": 2},
        "not_stored": {"abort": 1, "status": 1},
        "samples_from_cache": 3 + 2 + 1,
        "samples_from_upstream": 3,
        "tokens_saved": 18 + 11 + 4,
        "upstream_seconds_saved": 2.0 + 9.0,
    }


@each(
    ("kinds", "rate"),
    [
        ("", 0.0), ("h", 1.0), ("m", 0.0), ("p", 0.0), ("b", 0.0), ("hm", 0.5), ("hp", 0.5),
        ("hbbb", 1.0), ("hhhm", 0.75), ("hc", 0.5),
        ("hd", 0.5), ("c", 0.0),
    ],
)  # fmt: skip
def test_hit_rate(kinds: str, rate: float) -> None:
    """The rate is of the requests that were not passed on, and what had to wait is no hit."""
    letters = {"m": MISS, "p": PARTIAL, "b": BYPASS, "c": COLLAPSED, "d": DENIED}
    counters = Counters()
    for letter in kinds:
        if letter == "h":
            counters.hit(NOTHING)
        else:
            counters.add(Outcome(letters[letter], 1, 1))
    assert counters.hit_rate == rate
