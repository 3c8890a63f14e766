"""What the dialects of both APIs do alike.

Pure. A dialect says what its calls, choices and chunks are; all else is the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from sglang_cached_addon.core.call import Call, Mint, Recorded, Script, Split, UpstreamCall
from sglang_cached_addon.core.identity import UNKNOWN, Server
from sglang_cached_addon.dialects import base, trimming
from sglang_cached_addon.dialects.openai import apart, asking, choices, recording, replay
from sglang_cached_addon.dialects.openai.choices import StreamFacts


class Api(ABC):
    """The dialect of one of the two APIs."""

    transport = asking.TRANSPORT

    kind: str
    """The `object` of a JSON answer."""
    chunk_kind: str
    """The `object` of a chunk."""
    writes_nulls: bool
    """Whether the usage of a whole stream has members that are null."""
    tells: Mapping[str, tuple[str, ...]]
    """By a server's engine: the field that makes each choice tell how many tokens it has, and the
    members in which it tells that."""

    choice_recorder: type[recording.ChoiceRecorder]
    """What puts the chunks of one choice together."""
    chunks: staticmethod[[replay.StoredChoice, Any], tuple[list[bytes], bytes | None]]
    """Gives the events of a choice, and its finish where that is a chunk of its own."""

    @abstractmethod
    def prompts(self, call: Call, sent: UpstreamCall) -> list[Any]:
        """The prompts that were sent."""

    @abstractmethod
    def limit(self, call: Call) -> Any:
        """The number of tokens that a choice has at most."""

    def per_item(self, call: Call) -> Sequence[str]:
        """The fields of a call's body whose list holds a value for each prompt."""
        return ()

    def wants_rows(self, call: Call) -> bool:
        """Whether a JSON answer has the log-probabilities of every token, and a stream may not."""
        return False

    # As `Dialect`

    def trim(
        self, call: Call, shortfalls: Sequence[int], mint: Mint, server: Server = UNKNOWN
    ) -> UpstreamCall:
        n, order, skip = trimming.draw(call, shortfalls, server)
        body = dict(call.body)
        trimming.take(body, self.per_item(call), order)
        if n != call.n:
            body["n"] = n
        is_one = len(order) * n == 1
        counts = asking.ask_for_usage(call, body, server, is_one=is_one)
        added = () if is_one else asking.ask_for_tokens(call, body, server, self.tells)
        rids = trimming.mint_rids(call, body, order, n, mint)
        return UpstreamCall(body, order, n, rids, server, skip, added, counts)

    def repeated(self, body: dict[str, Any], count: int) -> dict[str, Any] | None:
        return None

    def split(
        self, call: Call, sent: UpstreamCall, answer: Any, told: StreamFacts | None = None
    ) -> Split:
        prompts, limit = self.prompts(call, sent), self.limit(call)
        return choices.split(sent, answer, prompts, told, limit=limit)

    write = staticmethod(choices.write)

    def record(self, call: Call, sent: UpstreamCall) -> base.Recorder:
        if sent.server.streams_apart:
            return apart.Recorder(
                sent.total,
                self.kind,
                lambda answer, told: self.split(call, sent, answer, told),
                counts=sent.counts,
            )
        return recording.Recorder(
            [self.choice_recorder() for _ in range(sent.total)],
            self.kind,
            lambda answer, told: self.split(call, sent, answer, told),
            server=sent.server,
            wants_rows=self.wants_rows(call),
        )

    def script(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> Script:
        if apart.is_apart(samples):
            return apart.script(call, samples)
        return replay.script(call, samples, self.chunks)

    def usage(self, call: Call, samples: Sequence[Sequence[Recorded]]) -> bytes | None:
        if apart.is_apart(samples):
            return apart.usage(samples)
        return replay.usage(call, samples, self.chunk_kind, nulls=self.writes_nulls)

    without_usage = staticmethod(replay.without_usage)

    def renumber(self, event: Any, choices: Sequence[int], like: Recorded) -> None:
        replay.renumber(event, choices, like)
        if apart.is_apart([[like]]):
            apart.share(event, like)

    rename = staticmethod(replay.rename)

    def cut(self, event: Any) -> None:  # noqa: B027
        pass  # no event has all of a choice
