"""What `sglang-cached start` can be asked for."""

from __future__ import annotations

from sglang_cached_addon.proxy.start import FLAGS, Start


def test_parse() -> None:
    """What was given with the flags of the settings is for mitmproxy, all else for the start."""
    own = {"sglang_url": "http://x", "port": 1, "host": "h", "drain": 2.0, "drain_accept": 1.0,
           "insecure": False, "web": True, "scripts": ("a.py",), "sets": ("b=c",)}  # fmt: skip
    others = {"collapse": True, "poll_seconds": 7.5, "key_headers": ("a", "b"),
              "admin_token": "s3cret"}  # fmt: skip
    start = Start.parse({**own, **others})
    assert {name: getattr(start, name) for name in own} == own
    assert start.options == {
        "sglang_collapse": False,
        "sglang_poll_seconds": "7.5",
        "sglang_key_headers": "a,b",
        "sglang_admin_token": "s3cret",
    }
    assert "s3cret" not in repr(start)


def test_flags() -> None:
    """No two flags are called alike, nor their variables."""
    assert len({entry.long for entry in FLAGS}) == len({e.variable for e in FLAGS}) == len(FLAGS)
