"""The URLs of servers: one server, one behind Sentinels, or a Cluster.

Opens no connection. `redis-py` is imported only where there is a URL to read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster", "rediss+cluster")

Connect = Callable[[], Any]
"""Makes a client."""


class _Wrong(ValueError):
    """Says what is wrong with a URL in words of our own."""


def read(url: str, seconds: float) -> tuple[str, bool, Connect, Connect]:
    """What to call a server, whether it is a cluster, and how to connect to it, in so many seconds:
    for commands, and for messages. Raises ValueError; no message has a password in it."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError(f"must be a URL that begins with one of {', '.join(SCHEMES)}, and ://")
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    more: dict[str, Any] = {
        "socket_timeout": None,  # ours is for a whole round trip
        "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 0),
    }
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        name = f"{scheme}://{host}{parts.path}"
        if scheme == "redis+sentinel":
            connect = feed = _sentinel(url, more)
        else:
            connect = feed = _plain(url.replace("+cluster", ""), more)
            if scheme.endswith("+cluster"):
                connect = _cluster(url.replace("+cluster", ""), seconds)
    except _Wrong as e:
        raise ValueError(str(e)) from None
    except (ValueError, TypeError):  # its text may have any part of the URL in it
        raise ValueError(f"the {scheme} URL cannot be read; escape what is special in it") from None
    return name, scheme.endswith("+cluster"), connect, feed


def _plain(url: str, more: dict[str, Any]) -> Connect:
    from redis.asyncio import Redis
    from redis.asyncio.connection import parse_url

    parts = urlsplit(url)
    if unknown := set(parse_url(url)) - _OPTIONS:
        raise _Wrong(f"unknown options: {', '.join(sorted(unknown))}")
    if parts.scheme == "unix":
        if not parts.path:
            raise _Wrong("must be like unix:///PATH/OF/SOCKET?db=0")
    elif not (parts.hostname and (parts.path.strip("/") or "0").isdigit()):
        raise _Wrong(f"must be like {parts.scheme}://HOST:6379/0")
    return lambda: Redis.from_url(url, **more)


def _cluster(url: str, seconds: float) -> Connect:
    from redis.asyncio.cluster import RedisCluster

    if urlsplit(url).path not in ("", "/", "/0"):
        raise _Wrong("a cluster has no database but 0")
    return lambda: RedisCluster.from_url(url, socket_connect_timeout=seconds)


def _sentinel(url: str, more: dict[str, Any]) -> Connect:
    from redis.asyncio.connection import parse_url
    from redis.asyncio.sentinel import Sentinel

    parts = urlsplit(url)
    credentials, separator, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not (hosts and service) or parts.query or not (database or "0").isdigit():
        raise _Wrong("must be like redis+sentinel://HOST:26379,HOST:26379/MASTER/0")
    addresses = [urlsplit(f"//{one}") for one in hosts.split(",")]
    sentinels = [(one.hostname or "localhost", one.port or 26379) for one in addresses]
    options = {**parse_url(f"redis://{credentials}{separator}/{database}"), **more}

    def connect() -> Any:
        found = Sentinel(sentinels, sentinel_kwargs=more)  # type: ignore[no-untyped-call]
        return found.master_for(service, **options)

    return connect


_OPTIONS = frozenset(
    {
        "host", "port", "db", "path", "username", "password", "connection_class",
        "client_name", "protocol", "health_check_interval", "socket_keepalive", "max_connections",
        "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path",
        "ssl_check_hostname", "ssl_password", "ssl_min_version", "ssl_ciphers",
    }
)  # fmt: skip
"""The options that a URL may have, in its path or behind `?`: others would change what answers look
like, or how long they may take."""
