"""Which cache a command is about, end to end: the proxy that has the folder, another, or nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests

from sglang_cached_addon.store.files import lock, note, owner_of
from tests.cli.typed import typed
from tests.conftest import Mitmproxy, Proxy, StartProxy, end, until
from tests.ports import dead_url, free_port
from tests.simulator import Simulator

GENERATE = {"text": "one", "sampling_params": {"temperature": 0.9, "max_new_tokens": 4}}


def stored(proxy: Proxy) -> None:
    """Has one sample stored."""
    assert requests.post(f"{proxy.url}/generate", json=GENERATE, timeout=60).ok
    assert proxy.stats()["total_responses"] == 1


def test_beside_its_proxy_and_alone(proxy: Proxy, tmp_path: Path) -> None:
    """A running proxy is asked, which the folder names; when it is gone, the folder is read."""
    folder = tmp_path / "cache"
    stored(proxy)
    assert requests.post(f"{proxy.url}/generate", json=GENERATE, timeout=60).ok
    online = json.loads(typed("stats", "--json", cache=folder).stdout)
    assert online == proxy.stats()
    assert (online["num_keys"], online["hits"]) == (1, 1)
    assert "hits" in typed("stats", cache=folder).stdout
    assert proxy.stop() == 0
    assert owner_of(folder) is None
    offline = json.loads(typed("stats", "--json", cache=folder).stdout)
    assert offline == {name: online[name] for name in offline}
    assert offline.keys() == {"num_keys", "total_responses", "cache_file"}


def test_another_proxy(simulator: Simulator, start_proxy: StartProxy, tmp_path: Path) -> None:
    """--url asks a proxy, whatever is in the folder, and with the token that it wants."""
    asked = start_proxy(simulator.url, "--admin-token", "secret", cache=tmp_path / "its")
    stored(asked)
    there = ["--url", asked.url]
    refused = typed("info", *there, cache=tmp_path / "none")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "needs the admin token" in refused.stderr
    told = typed("info", "--json", *there, "--admin-token", "secret", cache=tmp_path / "none")
    assert json.loads(told.stdout)["cache_dir"] == str(tmp_path / "its")
    told = typed("info", *there, cache=tmp_path / "none", SGLANG_CACHED_ADMIN_TOKEN="secret")
    assert f"upstream     {simulator.url}\n" in told.stdout


def test_read_beside_a_process_without_a_proxy(proxy: Proxy, tmp_path: Path) -> None:
    """A folder that is held by what does not listen, as `compact`, is read all the same."""
    folder = tmp_path / "cache"
    stored(proxy)
    assert proxy.stop() == 0
    lock(folder)
    done = typed("info", "--json", cache=folder)
    assert json.loads(done.stdout)["models"][0]["samples"] == 1


@pytest.mark.parametrize("url", ["ftp://localhost", "http://", "http://localhost:99999", "{dead}"])
def test_no_proxy_there(url: str, tmp_path: Path) -> None:
    """A proxy that is not there is named, in a line."""
    url = url.format(dead=dead_url())
    done = typed("stats", "--url", url, cache=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {url}")
    assert done.stderr.count("\n") == 1


def test_the_proxy_of_the_folder_does_not_answer(tmp_path: Path) -> None:
    """A proxy that has the folder, and cannot be reached, is named with its process."""
    (tmp_path / "cache.jsonl").touch()
    note(lock(tmp_path), url := dead_url())
    done = typed("stats", cache=tmp_path)
    assert done.returncode == 1
    assert f"Error: {url} does not answer: Connection refused (process " in done.stderr
    assert "--url" in done.stderr


def test_in_mitmdump(simulator: Simulator, tmp_path: Path) -> None:
    """The addon says where it listens in mitmdump, too."""
    port = free_port()
    options = ["--mode", f"reverse:{simulator.url}", "--listen-port", str(port)]
    folder = tmp_path / "cache"
    proxy = Mitmproxy("mitmdump", [*options, "--set", f"sglang_cache_path={folder}"], tmp_path)
    try:
        proxy.wait_until_ready()
        here = (f"http://127.0.0.1:{port}", f"http://[::1]:{port}")
        until(lambda: (owner := owner_of(folder)) and owner.url in here)
        assert json.loads(typed("stats", "--json", cache=folder).stdout) == proxy.stats()
    finally:
        end(proxy)


def test_no_cache(tmp_path: Path) -> None:
    """A folder without a cache is named, and nothing is made."""
    done = typed("stats", cache=tmp_path / "none")
    assert done.returncode == 2
    assert f"no cache in {tmp_path / 'none'}" in done.stderr
    assert list(tmp_path.iterdir()) == []
