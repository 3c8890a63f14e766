"""The proxy's own routes."""
