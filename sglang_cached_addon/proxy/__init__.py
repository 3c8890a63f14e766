"""All that knows mitmproxy, beside `addon.py`: fast lane, hooks, and the process around them."""
