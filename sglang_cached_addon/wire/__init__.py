"""Bytes of HTTP/1.1 and of server-sent events, without mitmproxy."""
