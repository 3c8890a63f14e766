"""`sglang-cached info` for people, of a proxy and of a folder."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cli.test_reach import stored
from tests.cli.typed import typed
from tests.conftest import Proxy


def test_for_people(proxy: Proxy, tmp_path: Path) -> None:
    """The model, its samples and the settings are shown, and of a folder what is in it."""
    folder = tmp_path / "cache"
    stored(proxy)
    running = typed("info", cache=folder).stdout
    assert re.search(r"^simulated +[0-9a-f]{16} +1$", running, re.M)
    assert re.search(r"^sglang-generate +1$", running, re.M)
    assert re.search(r"^mode +readwrite$", running, re.M)
    assert proxy.stop() == 0
    alone = typed("info", cache=folder).stdout
    assert re.search(r"^simulated +[0-9a-f]{16} +1$", alone, re.M)
    assert not re.search(r"^mode ", alone, re.M)
