"""When a client has its answer."""

from __future__ import annotations

from sglang_cached_addon.core.call_head import CallHead
from sglang_cached_addon.proxy.delivery import Delivery
from sglang_cached_addon.service.asking import Ask


class Claim:
    """What a call holds."""

    has_given_back = False

    def give_back(self) -> None:
        self.has_given_back = True


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
    assert (third.claim, broken.has_given_back) == (None, True)
    delivery.end(is_broken=True)
    assert (kept.has_given_back, lost.has_given_back) == (False, True)
    fourth, whole = ask()
    delivery.wrote(fourth)
    delivery.end(is_broken=False)
    assert (fourth.claim, whole.has_given_back) == (None, False)
