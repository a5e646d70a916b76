"""How commands show facts: a table for people, or the same facts as one JSON object for programs."""

import json
from collections.abc import Iterable, Mapping
from typing import Any


def print_json(facts: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(facts, ensure_ascii=False, indent=2))


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table on standard output; the first column is text, the others are numbers."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
