"""What is made of what other servers have told the doctor."""

from __future__ import annotations

from functools import partial

from sglang_cached_addon.cli import server_diagnosis
from sglang_cached_addon.cli.diagnosis import Finding, State
from sglang_cached_addon.cli.server_diagnosis import Server
from sglang_cached_addon.core.identity import Identity
from sglang_cached_addon.upstream.asking import Verdict
from tests.tables import each

redis = partial(server_diagnosis.redis, "redis://h")

OK, WARN, FAIL = State.OK, State.WARN, State.FAIL
URL = "http://localhost:30000"


def identity(engine: str = "sglang", version: str = "0.5.23") -> Identity:
    return Identity("d", "m", None, "", engine, version)


@each(
    ("finding", "state", "words"),
    [
        (server_diagnosis.no_server(), WARN, ["--sglang-url"]),
        (redis("", {"redis_version": "7.2.4"}), OK, ["7.2.4"]),
        (redis("", None), OK, ["answers"]),
        (redis("no answer", None), FAIL, ["redis://h: no answer"]),
        (redis("", {"redis_version": "6.0.9"}), FAIL, ["6.0.9", "6.2"]),
        (redis("", {"redis_version": "7.0.0", "maxmemory": 9, "maxmemory_policy": "noeviction"}),
         WARN, ["allkeys"]),
    ],
    ids=lambda row: row[0].text,
)  # fmt: skip
def test_findings(finding: Finding, state: State, words: list[str]) -> None:
    """Each state has a sentence, and what to do wherever something is to be done."""
    assert finding.state is state
    assert finding.text.endswith(".")
    assert bool(finding.remedy) is (state is not OK)
    for word in words:
        assert word in f"{finding.text} {finding.remedy}"


@each(
    ("server", "states", "words"),
    [
        (Server(URL, Verdict.DOWN), [FAIL], ["cannot be reached", "--sglang-url"]),
        (Server(URL, Verdict.DOWN, failure="bad certificate"), [FAIL],
         [": bad certificate.", "--insecure"]),
        (Server(URL, Verdict.SLOW), [FAIL], ["in time"]),
        (Server(URL, Verdict.TROUBLED), [FAIL], ["error"]),
        (Server(URL, Verdict.REFUSED), [WARN], ["--api-key"]),
        (Server(URL, Verdict.NAMELESS), [FAIL], ["/model_info"]),
        (Server(URL, Verdict.KNOWN, identity(), {"/generate": 200}), [OK, OK, OK],
         ["has m", "SGLang 0.5.23", "/generate 200"]),
        (Server(URL, Verdict.KNOWN, identity(version=""), {"/generate": 404, "/v1/x": 200}),
         [OK, WARN, OK], ["/server_info", "It answers: /v1/x 200, /generate 404."]),
        (Server(URL, Verdict.KNOWN, identity("vllm", ""), {"/generate": 401}), [OK, OK, OK],
         ["vllm", "wants a key", "--api-key"]),
        (Server(URL, Verdict.KNOWN, identity(), {"/generate": None}), [OK, OK, FAIL],
         ["/generate no answer"]),
    ],
)  # fmt: skip
def test_upstream(server: Server, states: list[State], words: list[str]) -> None:
    """A server is one that names its model, tells its version and generates."""
    findings = server_diagnosis.upstream(server)
    assert [finding.state for finding in findings] == states
    said = " ".join(f"{finding.text} {finding.remedy}" for finding in findings)
    for word in words:
        assert word in said
