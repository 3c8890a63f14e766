"""What decides: pure values and functions, without clocks, files, sockets or mitmproxy."""
