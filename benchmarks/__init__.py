"""Measures the cache side by side with what it stands beside: `python -m benchmarks`.

One run, one machine, one upstream stub, four targets: the stub itself (`direct`), nginx's
`proxy_cache`, stock `mitmdump -s` with our addon, and `sglang-cached start`. Absolute
figures say something about the machine; compare the ratios. `--rows meanwhile` measures one
client's hits through `sglang-cached start` while others do their worst.
"""
