"""A response cache in front of SGLang, as a mitmproxy addon."""

from importlib.metadata import version

__version__ = version("sglang-cached")
__all__ = ["__version__"]
