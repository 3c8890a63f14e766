"""`sglang-cached start`: the proxy in front of one upstream."""

from __future__ import annotations

import os
import sys

import click
from click.core import ParameterSource

from sglang_cached_addon.core.policy import Fsync, Mode, Restart


def _env(name: str) -> str:
    return f"SGLANG_CACHED_{name}"


@click.command()
@click.option(
    "--sglang-url",
    required=True,
    metavar="URL",
    envvar=_env("SGLANG_URL"),
    show_envvar=True,
    help="The SGLang server, like http://localhost:30000.",
)
@click.option(
    "--port",
    default=30001,
    show_default=True,
    envvar=_env("PORT"),
    show_envvar=True,
    help="Where to listen; 0 takes a free port.",
)
@click.option(
    "--host",
    default="0.0.0.0",
    show_default=True,
    envvar=_env("HOST"),
    show_envvar=True,
    help="The address to listen on.",
)
@click.option(
    "--cache-path",
    default="~/.sglang_cache",
    show_default=True,
    metavar="FOLDER",
    envvar=_env("CACHE_PATH"),
    show_envvar=True,
    help="Where answers are kept.",
)
@click.option(
    "--quiet",
    is_flag=True,
    envvar=_env("QUIET"),
    show_envvar=True,
    help="No log line for each request.",
)
@click.option(
    "--replay-tokens-per-second",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    envvar=_env("REPLAY_TOKENS_PER_SECOND"),
    show_envvar=True,
    help="How fast stored streams are replayed; 0 for at once.",
)
@click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.READWRITE.value,
    show_default=True,
    envvar=_env("MODE"),
    show_envvar=True,
    help="readonly stores nothing; refresh fetches everything anew, and replaces; offline never "
    "asks the server; off only passes on.",
)
@click.option(
    "--no-collapse",
    is_flag=True,
    envvar=_env("NO_COLLAPSE"),
    show_envvar=True,
    help="Let equal requests at the same time each go to the server.",
)
@click.option(
    "--isolate-by-credential",
    is_flag=True,
    envvar=_env("ISOLATE_BY_CREDENTIAL"),
    show_envvar=True,
    help="A cache for each API key, apart from the others'.",
)
@click.option(
    "--key-header",
    "key_headers",
    multiple=True,
    metavar="NAME",
    envvar=_env("KEY_HEADER"),
    show_envvar=True,
    help="A request header that is part of the key, like those by which known gateways choose a "
    "model are anyway; may be repeated.",
)
@click.option(
    "--admin-token",
    default="",
    metavar="TOKEN",
    envvar=_env("ADMIN_TOKEN"),
    show_envvar=True,
    help="What /cache/info and /cache/clear ask for; without one, they only answer to this "
    "machine. Better in the environment, where other users of the machine do not see it.",
)
@click.option(
    "--poll-seconds",
    type=click.FloatRange(0.1, 86_400),
    default=5.0,
    show_default=True,
    metavar="S",
    envvar=_env("POLL_SECONDS"),
    show_envvar=True,
    help="How often the server is asked which model it has, while there is traffic.",
)
@click.option(
    "--restart",
    type=click.Choice([restart.value for restart in Restart]),
    default=Restart.SAME.value,
    show_default=True,
    envvar=_env("RESTART"),
    show_envvar=True,
    help="What a restarted server that names the same model is taken for: same goes on giving "
    "stored answers, new begins anew.",
)
@click.option(
    "--credential-header",
    "credential_headers",
    multiple=True,
    metavar="NAME",
    envvar=_env("CREDENTIAL_HEADER"),
    show_envvar=True,
    help="A header in which clients show the server who they are, beside Authorization, X-Api-Key "
    "and the like; may be repeated.",
)
@click.option(
    "--store",
    default="",
    metavar="URL",
    envvar=_env("STORE"),
    show_envvar=True,
    help="A Redis or Valkey server that several proxies share, like redis://host:6379/0. Answers "
    "are then kept in a folder only where --cache-path is given, too.",
)
@click.option(
    "--fsync",
    type=click.Choice([one.value for one in Fsync]),
    default="interval",
    show_default=True,
    envvar=_env("FSYNC"),
    show_envvar=True,
    help="When answers are made to outlive a power cut: with each write, within a second, or when "
    "the system likes to.",
)
@click.option(
    "--max-entries",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    envvar=_env("MAX_ENTRIES"),
    show_envvar=True,
    help="How many entries are kept, those least recently used being the first to go; 0 for any "
    "number.",
)
@click.option(
    "--max-bytes",
    default="",
    metavar="SIZE",
    envvar=_env("MAX_BYTES"),
    show_envvar=True,
    help="How much is kept on disk, like 20G.",
)
@click.option(
    "--ttl",
    default="",
    metavar="TIME",
    envvar=_env("TTL"),
    show_envvar=True,
    help="How long an answer is kept, like 12h or 30d.",
)
@click.option(
    "--memory",
    default="",
    metavar="SIZE",
    envvar=_env("MEMORY"),
    show_envvar=True,
    help="How much memory answers may take, like 2G; the others are read from disk. By default a "
    "quarter of the machine's.",
)
@click.option(
    "--readonly",
    is_flag=True,
    envvar=_env("READONLY"),
    show_envvar=True,
    help="Use a folder that another process owns, and store nothing.",
)
@click.option(
    "--overwrite-cache",
    is_flag=True,
    envvar=_env("OVERWRITE_CACHE"),
    show_envvar=True,
    help="Empty the cache first.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0, 86_400),
    default=60.0,
    show_default=True,
    metavar="S",
    envvar=_env("DRAIN"),
    show_envvar=True,
    help="How long requests under way may take after SIGTERM or Ctrl+C; a second one ends at once.",
)
@click.option(
    "--drain-accept",
    type=click.FloatRange(0, 86_400),
    default=0.0,
    show_default=True,
    metavar="S",
    envvar=_env("DRAIN_ACCEPT"),
    show_envvar=True,
    help="How much of that new connections are still served, for balancers that go on sending.",
)
@click.option(
    "--insecure",
    is_flag=True,
    envvar=_env("INSECURE"),
    show_envvar=True,
    help="Do not check the certificate of an https:// upstream.",
)
@click.option(
    "--web",
    is_flag=True,
    envvar=_env("WEB"),
    show_envvar=True,
    help="Run in mitmweb, and print the URL where flows can be watched.",
)
@click.option(
    "-s",
    "--script",
    "scripts",
    multiple=True,
    metavar="FILE",
    envvar=_env("SCRIPT"),
    show_envvar=True,
    help="A mitmproxy script to load as well; may be repeated.",
)
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="NAME=VALUE",
    envvar=_env("SET"),
    show_envvar=True,
    help="A mitmproxy option; may be repeated.",
)
def start(
    sglang_url: str,
    port: int,
    host: str,
    cache_path: str,
    quiet: bool,
    replay_tokens_per_second: int,
    mode: str,
    no_collapse: bool,
    isolate_by_credential: bool,
    key_headers: tuple[str, ...],
    admin_token: str,
    poll_seconds: float,
    restart: str,
    credential_headers: tuple[str, ...],
    fsync: str,
    max_entries: int,
    max_bytes: str,
    ttl: str,
    memory: str,
    readonly: bool,
    overwrite_cache: bool,
    store: str,
    drain: float,
    drain_accept: float,
    insecure: bool,
    web: bool,
    scripts: tuple[str, ...],
    sets: tuple[str, ...],
) -> None:
    """Put the cache in front of a server, until Ctrl+C."""
    from sglang_cached_addon.proxy.runner import Start, run  # mitmproxy takes its time to import

    context = click.get_current_context()
    if context.get_parameter_source("cache_path") is not ParameterSource.DEFAULT:
        cache_path = os.path.expanduser(cache_path)  # noqa: PTH111 - said, even if it is the default

    sys.exit(
        run(
            Start(
                sglang_url=sglang_url,
                port=port,
                host=host,
                cache_path=cache_path,
                quiet=quiet,
                insecure=insecure,
                web=web,
                scripts=scripts,
                sets=sets,
                replay_tokens_per_second=replay_tokens_per_second,
                mode=mode,
                collapse=not no_collapse,
                isolate_by_credential=isolate_by_credential,
                key_headers=key_headers,
                admin_token=admin_token,
                poll_seconds=poll_seconds,
                restart=restart,
                credential_headers=credential_headers,
                fsync=fsync,
                max_entries=max_entries,
                max_bytes=max_bytes,
                ttl=ttl,
                memory=memory,
                readonly=readonly,
                overwrite_cache=overwrite_cache,
                store=store,
                drain=drain,
                drain_accept=drain_accept,
            )
        )
    )
