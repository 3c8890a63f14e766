"""A simulator of SGLang 0.5.23's HTTP server, for demonstrations and tests. It is no model.

It draws words from a fixed list and says so: server `sglang-simulator`, model `simulated`.
Keys, their order, JSON types and stream framing (one event per HTTP chunk) are those of
SGLang 0.5.23. At temperature 0 an answer is a pure function of seed, model and prompt (see
`Profile`); otherwise a counter is mixed in, so that samples differ and a whole run can be
repeated. Other weights, adapters, aliases, keys and processes behind the same port can be played.
"""

from sglang_cached_addon.simulator.profile import Fault, Profile, Received
from sglang_cached_addon.simulator.server import Simulator, running

__all__ = ["Fault", "Profile", "Received", "Simulator", "running"]
