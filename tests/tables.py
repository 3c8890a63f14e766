"""Tables of cases: one table is one test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Signature, signature
from typing import Any

Test = Callable[..., None]


def each(
    names: str | tuple[str, ...],
    rows: Iterable[Any],
    ids: Iterable[Any] | Callable[[Any], Any] | None = None,
) -> Callable[[Test], Test]:
    """Calls a test with each row of a table; `names` are the columns. It is one test for pytest: an
    error names the row that it is in, by its id where there are `ids`."""
    columns = (names,) if isinstance(names, str) else names
    table = list(rows)
    labels = [ids(row) for row in table] if callable(ids) else list(ids or table)

    def decorate(test: Test) -> Test:
        @wraps(test)
        def run(**fixtures: Any) -> None:
            for row, label in zip(table, labels, strict=True):
                values = row if len(columns) > 1 else (row,)
                try:
                    test(**dict(zip(columns, values, strict=True)), **fixtures)
                except BaseException as e:
                    e.add_note(f"{test.__name__}, in the row {label!r:.300}")
                    raise

        parameters = signature(test).parameters.values()
        fixtures = [parameter for parameter in parameters if parameter.name not in columns]
        run.__signature__ = Signature(fixtures)  # type: ignore[attr-defined]
        return run

    return decorate
