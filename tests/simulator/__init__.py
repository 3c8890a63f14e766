"""The stand-in upstream of the tests: the package's, which can be told what to do.

Faults, aborts, pauses, updates of the weights, adapters, keys, aliases and other processes behind
the same port can be played, and what SGLang refuses is refused.
"""

from tests.simulator import control
from tests.simulator.handler import is_probe
from tests.simulator.profile import Fault, Profile, Received
from tests.simulator.server import Simulator, running

__all__ = ["Fault", "Profile", "Received", "Simulator", "control", "is_probe", "running"]
