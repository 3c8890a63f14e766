"""The benchmark's own arithmetic and files; nothing here is timed or needs wrk."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import orjson
import pytest

from benchmarks import (
    attacks,
    calls,
    entries,
    explaining,
    listing,
    lists,
    meanwhile,
    moody,
    plot,
    report,
    stub,
    wrk,
)
from benchmarks.__main__ import parse_options
from benchmarks.bounds import bounds
from benchmarks.results import Results
from benchmarks.servers import DIRECT, MITMDUMP, NGINX, OURS, QUIET
from sglang_cached_addon import dialects
from sglang_cached_addon.core import keys, planning
from sglang_cached_addon.core.identity import SGLANG, Server
from sglang_cached_addon.service.exchange import Exchange
from sglang_cached_addon.service.findings import Hit, Known
from sglang_cached_addon.store import DiskStore
from tests.tables import each

WRK_OUTPUT = """\
Running 1s test @ http://127.0.0.1:18733/generate
  1 threads and 1 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    50.03us  213.90us   3.87ms   98.47%
    Req/Sec    35.08k     1.88k   37.38k    72.73%
  Latency Distribution
     50%   25.00us
     75%   25.00us
     90%   28.00us
     99%    0.95ms
  38277 requests in 1.10s, 20.19MB read
Requests/sec:  34798.92
Transfer/sec:     18.35MB
"""


def test_wrk_output() -> None:
    assert wrk.parse(WRK_OUTPUT) == wrk.Figures(25.0, 950.0, 34798.92, 38277)
    assert wrk.parse(WRK_OUTPUT.replace("0.95ms", "1.20s")).p99 == 1_200_000


@each(
    "output",
    [
        "",
        WRK_OUTPUT + "  Non-2xx or 3xx responses: 12\n",
        WRK_OUTPUT + "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
        WRK_OUTPUT.replace("38277 requests", "0 requests"),
        WRK_OUTPUT.replace("99%", "98%"),
    ],
)
def test_wrk_output_that_is_no_measurement(output: str) -> None:
    with pytest.raises(wrk.WrkError):
        wrk.parse(output)


@pytest.fixture
def results() -> Results:
    """Three rounds on a machine that gets slower; nginx missed the last."""
    results = Results()
    for turn, (ours, nginx) in enumerate([(50.0, 100.0), (120.0, 200.0), (280.0, None)]):
        results.add("hit-small p50", "µs", NGINX, OURS, turn, ours)
        if nginx is not None:
            results.add("hit-small p50", "µs", NGINX, NGINX, turn, nginx)
        results.add("miss p50", "µs", DIRECT, DIRECT, turn, ours / 10)
        results.add("miss p50", "µs", DIRECT, OURS, turn, 500 + ours)
    return results


def test_ratios_are_of_the_same_round(results: Results) -> None:
    row = results.rows["hit-small p50"]
    assert row.median(OURS) == 120
    assert row.ratio(OURS) == pytest.approx(0.55)  # of 0.5 and 0.6, though 120 / 150 is 0.8
    assert row.ratio(NGINX) == 1
    assert row.ratio(OURS, MITMDUMP) is None
    assert results.rows["miss p50"].difference(OURS) == pytest.approx(608)


def test_table(results: Results) -> None:
    lines = [line.split() for line in report.table(results).splitlines()]
    assert lines[1] == ["hit-small", "p50", OURS, "120", "50.0", "280", "µs", "0.55", NGINX]
    assert lines[2] == [NGINX, "150", "100", "200", "µs", "1.00", NGINX]


def test_verdicts(results: Results) -> None:
    limits = bounds(10, 1_000_000, 100, 100_000)
    found = {(b.name, b.reference, b.limit): b.verdict(b.found(results.rows)) for b in limits}
    assert len(found) == len(limits)
    assert found["hit, p50", NGINX, 1.0] == "met"
    assert found["miss, p50 added", DIRECT, 600] == "missed"
    assert found["hit, p50", MITMDUMP, 0.5] == "not measured"
    text = report.verdicts(limits, results.rows)
    assert len(text.splitlines()) == len(limits) + 1
    assert "<= 600 µs" in text


def test_json(results: Results) -> None:
    limits = bounds(10, 1_000_000, 100, 100_000)
    data = json.loads(orjson.dumps(report.as_json({"date": "today"}, results, limits)))
    assert data["rows"][0]["targets"][OURS]["values"] == [50, 120, 280]
    assert data["rows"][0]["targets"][OURS]["ratio"] == pytest.approx(0.55)
    assert {bound["verdict"] for bound in data["bounds"]} == {"met", "missed", "not measured"}


def test_plot_is_xml(results: Results) -> None:
    root = ElementTree.fromstring(plot.svg(results.rows, "on <a machine> & today"))
    names = {"svg": "http://www.w3.org/2000/svg"}
    bars = root.findall("svg:rect", names)
    assert [bar.get("class") for bar in bars] == ["ours", "a", "ours", "c"]
    assert all(0 < float(bar.get("width", "0")) <= plot.BAR for bar in bars)
    assert root.findall("svg:text", names)[-1].text == "on <a machine> & today"
    assert ElementTree.fromstring(plot.svg({}, "nothing")) is not None


def test_bodies_have_one_length() -> None:
    """A ten-digit number replaces the mark: wrk sends one head for all bodies."""
    assert len(orjson.loads(calls.SMALL.body(0))["text"]) == 100
    assert len(orjson.loads(calls.LARGE.body(0))["text"]) == 16 * 1024
    for call in (calls.SMALL, calls.LARGE, calls.FOUR, calls.chat_stream(3)):
        assert call.template.count(calls.MARK) == 1
        assert len(call.body(0)) == len(call.body(9_999_999_999)) == len(call.template)


def test_journal_is_loaded(tmp_path: Path) -> None:
    """The proxy finds its answers in the lines that are written ahead."""
    entries.write_journal(tmp_path, calls.SMALL, 25)
    store = DiskStore(tmp_path)
    try:
        assert (store.loaded.keys, store.loaded.samples, store.loaded.skipped) == (25, 25, 0)
        dialect = dialects.installed()["POST", calls.SMALL.path]
        for number in (0, 24):
            content = dialect.read(keys.parse(calls.SMALL.body(number))).items[0]
            pool = store.get(keys.Digester(entries.FINGERPRINT, dialect.name).key(content))
            assert [orjson.loads(sample.answer) for sample in pool] == [stub.generated(1)]
    finally:
        store.close()


@pytest.mark.parametrize("call", [calls.SMALL, calls.FOUR], ids=["n=1", "n=4"])
def test_the_stubs_answers_are_stored(call: calls.Call, tmp_path: Path) -> None:
    store = DiskStore(tmp_path)
    try:
        exchange = Exchange(dialects.installed(), store, lambda: "0" * 32)
        known = exchange.lookup.find("POST", call.path, call.body(1))
        assert isinstance(known, Known)
        fetch = exchange.fetch(known, exchange.lookup.plan(known))
        n = fetch.plan.call.n
        answer = stub.answer(call.path, n).split(b"\r\n\r\n", 1)[1]
        landed = exchange.land(fetch, 200, BytesIO(answer))
        assert landed.split
        new = planning.samples(landed.split.generations, 0.0, 0.0)
        assert [reason for _, reason in exchange.store(fetch, new)] == [None]
        hit = exchange.lookup.find("POST", call.path, call.body(1))
        assert isinstance(hit, Hit)
        assert orjson.loads(hit.body) == stub.generated(n)
    finally:
        store.close()


@each("path", ["/generate", "/v1/chat/completions"])
def test_the_stubs_streams(path: str) -> None:
    """One event a chunk, a finish reason in the last, then the end."""
    chunks = [stub.chunk(path, i, 3, False) for i in range(4)]
    for chunk in chunks:
        size, data = chunk.split(b"\r\n", 1)
        assert data[int(size, 16) :].startswith(b"\r\n")
    events = [orjson.loads(c.split(b"data: ", 1)[1].split(b"\n\n")[0]) for c in chunks[:3]]
    finishes = [
        e["meta_info"]["finish_reason"] if path == "/generate" else e["choices"][0]["finish_reason"]
        for e in events
    ]
    assert finishes[:2] == [None, None]
    assert finishes[2]
    assert chunks[3].endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_quick() -> None:
    options = parse_options(["--quick"])
    assert (options.rounds, options.seconds, options.entries) == (1, 1, 20_000)
    with pytest.raises(SystemExit):
        parse_options(["--rounds", "0"])


def test_times_of_hits() -> None:
    times = meanwhile.Times.of([float(n) for n in range(101)])
    assert (times.p50, times.p99, times.highest) == (50, 99, 100)
    with pytest.raises(ValueError):
        meanwhile.Times.of([])
    assert meanwhile.waits(0.0005) == pytest.approx([500])
    assert meanwhile.waits(0.0035) == pytest.approx([3500, 2500, 1500, 500])


@pytest.mark.parametrize("attack", attacks.ATTACKS, ids=lambda attack: attack.name)
def test_each_attack_has_a_bound(attack: attacks.Attack, results: Results) -> None:
    for target, value in ((QUIET, 500), (attack.name, 200_000)):
        results.add("meanwhile p99", "µs", QUIET, target, 0, value)
    limits = bounds(10, 1_000_000, 100, 100_000)
    rows = {"meanwhile p99": results.rows["meanwhile p99"]}
    (found,) = [bound for bound in limits if bound.verdict(bound.found(rows)) == "missed"]
    assert (found.target, found.limit) == (attack.name, 100_000)


def test_the_moody_upstreams_answers() -> None:
    """As many samples as were asked for, as long as was asked for."""
    body = orjson.loads(moody.answer(3, 1000, True).split(b"\r\n\r\n", 1)[1])
    assert [len(sample["text"]) for sample in body] == [1000] * 3
    assert isinstance(orjson.loads(moody.answer(1, 40, False).split(b"\r\n\r\n", 1)[1]), dict)


def test_what_is_nearest_is_found(tmp_path: Path) -> None:
    """Of calls that are much alike, the one that was changed is found, wherever it was changed."""
    found = explaining.measure(tmp_path, 400)
    assert found["found"] == 1.0
    assert 50 < found["bytes"] < 1000


@each("api", lists.APIS)
def test_lists(api: str) -> None:
    """Each list is one that the cache looks up, and its answer one that is stored, input by
    input."""
    path, field, _ = lists.APIS[api]
    dialect = dialects.installed()["POST", path]
    body = orjson.loads(lists.call(api, 3, 4))
    assert body[field] == [f"{api} {i}" for i in (3, 4, 5, 6)]
    call = dialect.read(body)
    sent = dialect.trim(call, (1,) * 4, lambda: "0" * 32, Server(SGLANG))
    counts = listing.ANSWERS["/tokenize"]({"prompt": sent.texts})["count"]
    answer = orjson.loads(orjson.dumps(listing.ANSWERS[path](sent.body)))
    split = dialect.split(call, replace(sent, tokens=tuple(counts)), answer)
    assert (len(split.generations), split.refusal) == (4, None)
    row = lists.Row(api, 1000, "known", 2.0, 1.0, 10.0, 51.0, 1.0)
    assert str(row).endswith("missed") and "2.0 x direct" in str(row)
