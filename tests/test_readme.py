"""README and docs say what the program does; `python -m tests.test_readme` writes their tables."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from click.testing import CliRunner

from sglang_cached_addon.admin.routes import ROUTES
from sglang_cached_addon.cli import main
from sglang_cached_addon.core.policy import Reason
from sglang_cached_addon.dialects import installed
from sglang_cached_addon.proxy.start import FLAGS
from sglang_cached_addon.settings import OPTIONS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def start_help() -> str:
    """What `sglang-cached start --help` prints."""
    result = CliRunner().invoke(
        main, ["start", "--help"], prog_name="sglang-cached", terminal_width=96
    )
    return f"```\n{result.output.rstrip()}\n```"


def addon_options() -> str:
    rows = [f"| `{o.name}` | `{o.default}` | {o.option_help} |" for o in OPTIONS]
    return "\n".join(["| `--set` | default | |", "|---|---|---|", *rows])


def transport_fields() -> str:
    by_fields: dict[tuple[str, ...], list[str]] = {}
    for (_, path), dialect in installed().items():
        paths = by_fields.setdefault(tuple(sorted(dialect.transport)), [])
        path = path.partition("?")[0]
        if f"`{path}`" not in paths:
            paths.append(f"`{path}`")
    rows = [
        f"| {', '.join(sorted(paths))} | {', '.join(f'`{name}`' for name in fields) or 'none'} |"
        for fields, paths in sorted(by_fields.items(), key=lambda row: row[1])
    ]
    return "\n".join(["| API | fields that are not in the key |", "|---|---|", *rows])


def reasons() -> str:
    rows = [f"| `{reason}` | {reason.meaning} |" for reason in Reason]
    return "\n".join(["| reason | |", "|---|---|", *rows])


SECTIONS: dict[str, tuple[str, Callable[[], str]]] = {
    "--help": ("docs/operations.md", start_help),
    "addon options": ("docs/operations.md", addon_options),
    "transport fields": ("docs/key.md", transport_fields),
    "reasons": ("docs/http.md", reasons),
}


def section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- start {name} -->\n).*?(?=<!-- end -->)", re.S)


def anchors(page: Path) -> set[str]:
    """What links can point to, as GitHub names headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The files of this repository that a page links to, and the headings in them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            yield ((page.parent / name).resolve() if name else page), anchor


def defined(path: Path) -> set[str]:
    """What a module defines: functions, classes, what stands in these, and names with a value."""
    found: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            if isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + t.id for t in targets if isinstance(t, ast.Name))

    visit(ast.parse(path.read_text()).body, "")
    return found


def test_architecture() -> None:
    """Each file that the page on the architecture names is there, with the functions beside it."""
    text = (ROOT / "docs/architecture.md").read_text()
    package = ROOT / "sglang_cached_addon"
    paths = re.findall(r"`([\w/]+(?:\.py|/))`|\[((?:\w+/)+(?:\w+\.py)?)[\]:,]", text)
    for name in {first or second for first, second in paths}:
        assert (package / name).exists() or (ROOT / name).exists(), name
    named = re.findall(r"`([\w/]+\.py)`(?: \|)? `([\w.]+)`", text)
    assert len(named) > 70
    for name, function in named:
        assert function in defined(package / name), f"docs/architecture.md: no {function} in {name}"
    words = re.findall(r"^\| (.+?) \| .* \| `\w", text[text.index("## Glossary") :], re.M)
    assert len(set(words)) == len(words) > 50


def test_sections() -> None:
    """A user who reads a table reads what the program does."""
    for name, (page, render) in SECTIONS.items():
        found = section(name).search((ROOT / page).read_text())
        assert found, name
        assert found[0].strip() == render().strip(), name


def test_readme_is_short() -> None:
    """It is read in one go; the rest is in docs/, and each page of it is linked."""
    assert len(README.read_text().splitlines()) <= 200
    assert {page for page, _ in links(README)} >= set(PAGES[1:])


def test_links() -> None:
    """No link leads to nothing."""
    for page in PAGES:
        for target, anchor in links(page):
            assert target.exists(), (page.name, target)
            assert not anchor or anchor in anchors(target), (page.name, target.name, anchor)


def test_what_is_typed() -> None:
    """Each flag, variable, command and target that a page names is there."""
    commands = {name: {o for p in c.params for o in p.opts} for name, c in main.commands.items()}
    flags = set().union(*commands.values(), {"--help", "--version"})
    others = {
        "--mode",
        "--resolution",
        "--sglang",
        "--enable-mis",
        "--completion-template",
        "--enable-response-store",
    }  # of other programs
    variables = {flag.variable for flag in FLAGS} | {"SGLANG_CACHED_URL"}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page in PAGES:
        text = page.read_text()
        typed = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", re.sub(r"<!--.*?-->", "", text)))
        assert typed <= flags | others, (page.name, typed - flags)
        assert set(re.findall(r"SGLANG_CACHED_\w+", text)) <= variables, page.name
        assert set(re.findall(r"sglang-cached ([a-z]+)(?=[ `\n]+(?:--|`|$))", text)) <= {
            *commands, "has",
        }, page.name  # fmt: skip
        assert set(re.findall(r"^    make ([\w-]+)|`make ([\w-]+)", text, re.M)) <= {
            (target, "") for target in targets
        } | {("", target) for target in targets}, page.name


def test_routes() -> None:
    """Each route of the proxy itself has its row, with its method."""
    text = (ROOT / "docs/http.md").read_text().partition("## Routes of the proxy itself")[2]
    rows = dict(re.findall(r"^\| `(?:GET|POST) (/[\w/{}]+)` \| (.)", text, re.M))
    assert rows.keys() == ROUTES.keys()
    for path, route in ROUTES.items():
        assert f"| `{route.methods[0]} {path}` |" in text


if __name__ == "__main__":
    for title, (page, render) in SECTIONS.items():
        text = (ROOT / page).read_text()
        found = section(title).search(text)
        assert found, title
        (ROOT / page).write_text(f"{text[: found.start()]}{render()}\n{text[found.end() :]}")
