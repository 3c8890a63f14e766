"""`python -m sglang_cached_addon` is `sglang-cached`."""

from sglang_cached_addon.cli import main

main(prog_name="sglang-cached")
