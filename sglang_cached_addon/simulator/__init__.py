"""A small stand-in for SGLang 0.5.23's HTTP server, for `demo` and `simulate`. It is no model.

It draws words from a fixed list and says so: server `sglang-simulator`, model `simulated`.
Keys, their order, JSON types and stream framing (one event per HTTP chunk) are those of
SGLang 0.5.23. At temperature 0 an answer is a pure function of seed, model and prompt;
otherwise a counter is mixed in, so that samples differ and a whole run can be repeated.
"""

from sglang_cached_addon.simulator.profile import Profile
from sglang_cached_addon.simulator.server import Simulator, running

__all__ = ["Profile", "Simulator", "running"]
