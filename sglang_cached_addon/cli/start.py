"""`sglang-cached start`: the proxy in front of one upstream."""

from __future__ import annotations

import sys

import click


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
    insecure: bool,
    web: bool,
    scripts: tuple[str, ...],
    sets: tuple[str, ...],
) -> None:
    """Put the cache in front of a server, until Ctrl+C."""
    from sglang_cached_addon.runner import Start, run  # mitmproxy takes its time to import

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
            )
        )
    )
