"""When a client has its answer."""

from __future__ import annotations

from sglang_cached_addon.core.call_head import CallHead
from sglang_cached_addon.proxy.delivery import Delivery
from sglang_cached_addon.service.asking import Ask


class Claim:
    """What a call holds."""

    is_delivered: bool | None = None

    def settle(self, *, is_delivered: bool) -> None:
        self.is_delivered = is_delivered


def ask() -> tuple[Ask, Claim]:
    asked, claim = Ask(CallHead("POST", "/"), b"", ()), Claim()
    asked.claim = claim  # type: ignore[assignment]
    return asked, claim


def test_delivery() -> None:
    """A call keeps its samples once its last byte has left, and gives them back where it has not
    when the connection breaks."""
    unread = 0
    delivery = Delivery(lambda: unread)
    (first, kept), (second, lost), (third, broken) = ask(), ask(), ask()
    delivery.wrote(first)
    delivery.look()
    assert first.claim is None
    unread = 5
    delivery.wrote(second)
    delivery.look()
    assert second.claim
    delivery.wrote(third, is_whole=False)
    assert (third.claim, broken.is_delivered) == (None, False)
    delivery.end(is_broken=True)
    assert (kept.is_delivered, lost.is_delivered) == (True, False)
    fourth, whole = ask()
    delivery.wrote(fourth)
    delivery.end(is_broken=False)
    assert (fourth.claim, whole.is_delivered) == (None, True)
