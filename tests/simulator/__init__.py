"""The stand-in upstream of the tests: the package's, with what only tests need."""

from sglang_cached_addon.simulator import Fault, Profile, Received, Simulator, control, running
from sglang_cached_addon.simulator.handler import is_probe

__all__ = ["Fault", "Profile", "Received", "Simulator", "control", "is_probe", "running"]
