"""Writers that often look whether their file is where it was."""

from __future__ import annotations

import pytest

from sglang_cached_addon.store.journal import writer


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LOOK_SECONDS", 0.01)
