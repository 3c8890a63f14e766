"""What is made of what the doctor has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_cached_addon.cli import diagnosis
from sglang_cached_addon.cli.diagnosis import Finding, Folder, Holder, State, worst
from tests.tables import each

OK, WARN, FAIL = State.OK, State.WARN, State.FAIL
HERE = "/cache"
URL = "http://localhost:30001"


@each(
    ("finding", "state", "words"),
    [
        (diagnosis.python("3.11.7"), OK, ["3.11.7"]),
        (diagnosis.python("3.14.0rc1"), OK, ["3.14"]),
        (diagnosis.python("3.9.1"), FAIL, ["too old", "3.11"]),
        (diagnosis.mitmproxy("11.0.2"), OK, ["no token"]),
        (diagnosis.mitmproxy("12.3.1"), OK, ["12.3.1"]),
        (diagnosis.mitmproxy("10.4.2"), FAIL, ["not supported", "11.0.2"]),
        (diagnosis.mitmproxy("13.0.0"), FAIL, ["not supported", "13"]),
        (diagnosis.mitmproxy("odd"), FAIL, ["odd"]),
        (diagnosis.lane({}, None), OK, ["fast lane"]),
        (diagnosis.lane({}, "--web shows flows"), WARN, ["--web shows flows"]),
        (diagnosis.lane({"the lane": "gone"}, None), WARN, ["the lane (gone)"]),
        (diagnosis.folder(Folder(HERE)), OK, [HERE]),
        (diagnosis.folder(Folder(HERE, exists=False)), OK, ["first start"]),
        (diagnosis.folder(Folder(HERE, exists=False, is_writable=False)), FAIL, ["made by"]),
        (diagnosis.folder(Folder(HERE, is_writable=False)), FAIL, ["written to", "--cache-path"]),
        (diagnosis.folder(Folder(HERE, is_folder=False)), FAIL, ["no folder"]),
        (diagnosis.folder(Folder(HERE, open_files=["state.json"])), WARN, ["state.json", "chmod"]),
        (diagnosis.folder(Folder(HERE, is_ours=False)), WARN, ["another user"]),
        (diagnosis.disk(10**10, 10**6), OK, ["10.0 GB free", "1.0 MB"]),
        (diagnosis.disk(5 * 10**8, 0), WARN, ["500.0 MB free"]),
        (diagnosis.disk(10**10, 10**11), WARN, ["compacted"]),
        (diagnosis.disk(10**7, 0), FAIL, ["Make room"]),
        (diagnosis.clock(1000.0, None, None), OK, ["nothing"]),
        (diagnosis.clock(1000.0, 990.0, None), OK, ["what is stored"]),
        (diagnosis.clock(1000.0, 990.0, -3.0), OK, ["the server and what is stored"]),
        (diagnosis.clock(1000.0, 5000.0, None), WARN, ["4,000 seconds ahead", "--ttl"]),
        (diagnosis.clock(1000.0, None, 3600.0), WARN, ["3,600 seconds ahead", "NTP"]),
        (diagnosis.clock(1000.0, None, -3600.0), WARN, ["3,600 seconds behind"]),
        (diagnosis.lock(None), OK, ["No process"]),
        (diagnosis.lock(Holder("7", URL, True, True)), OK, ["Process 7", URL]),
        (diagnosis.lock(Holder("7", "", True, False)), OK, ["does not listen yet"]),
        (diagnosis.lock(Holder("7", URL, True, False)), FAIL, ["does not answer", "kill 7"]),
        (diagnosis.lock(Holder("7", URL, False, False)), WARN, ["no process of this machine"]),
        (diagnosis.files(65_536, "It"), OK, ["65,536"]),
        (diagnosis.files(1024, "It"), WARN, ["1,024", "ulimit -n", "LimitNOFILE"]),
        (diagnosis.files(64, "It"), FAIL, ["64"]),
    ],
    ids=lambda row: row[0].text,
)  # fmt: skip
def test_findings(finding: Finding, state: State, words: Sequence[str]) -> None:
    """Each state has a sentence, and what to do wherever something is to be done."""
    assert finding.state is state
    assert finding.text.endswith(".")
    assert bool(finding.remedy) is (state is not OK)
    for word in words:
        assert word in f"{finding.text} {finding.remedy}"


def test_worst() -> None:
    """The worst finding is that of all together."""
    ok, warn, fail = (Finding("x", state, "It is.") for state in State)
    found: list[tuple[list[Any], State]] = [
        ([], OK), ([ok, warn], WARN), ([fail, warn, ok], FAIL), ([ok], OK),
    ]  # fmt: skip
    for findings, state in found:
        assert worst(findings) is state
