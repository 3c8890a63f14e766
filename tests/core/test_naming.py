"""The names of bodies and pools under one model."""

from __future__ import annotations

from sglang_cached_addon.core import keys
from sglang_cached_addon.core.naming import TENANTS, Naming


def test_names() -> None:
    """Two models, APIs or tenants share no name, and the same ones have the same names, however
    many tenants came in between."""
    found = []
    for model in ("m", "n"):
        naming = Naming(model)
        for dialect in ("a", "b"):
            for tenant in (b"", b"1"):
                (key,) = naming.keys(dialect, tenant, [b"{}"])
                assert key.startswith(keys.prefix(model))
                found += [key, naming.raw(dialect, tenant, b"{}")]
        for number in range(2 * TENANTS):
            naming.raw("a", b"%032d" % number, b"{}")
        assert naming.keys("b", b"1", [b"{}"] * 2) == (key, key)
    assert len(set(found)) == len(found)
