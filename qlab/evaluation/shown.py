"""How a table of results shows itself: never squeezed in a terminal, as HTML in a notebook.

Here is what tables share; their columns and notes are their own (`tables`, `latency`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from html import escape
from typing import Any


def print_table(table: Any, notes: Sequence[str], console: Any = None) -> None:
    """Prints a rich table at its full width, and the notes wrapped below it.

    Args:
        table: of rich.
        notes: a line each.
        console: of rich; None: a new one.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    width = max(console.width, Console(width=1000).measure(table).maximum)
    wide = Console(file=console.file, width=width, force_terminal=console.is_terminal)
    wide.print(table)
    for note in notes:
        console.print(Text(f"· {note}", style="dim"))


def as_text(printed: Callable[[Any], None]) -> str:
    """What a function prints to a console of 100 columns, without colours and trailing blanks."""
    from rich.console import Console

    out = io.StringIO()
    printed(Console(width=100, file=out, color_system=None))
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())


def html_row(cells: Sequence[str]) -> str:
    """A row whose first cell stands left and whose others stand right.

    Example:
        >>> html_row(["<a>"])
        '<tr><td style="text-align:left">&lt;a&gt;</td></tr>'
    """
    rest = "".join(f'<td style="text-align:right">{escape(cell)}</td>' for cell in cells[1:])
    return f'<tr><td style="text-align:left">{escape(cells[0])}</td>{rest}</tr>'


def html_table(
    columns: Sequence[str], body: Sequence[str], notes: Sequence[str], above: str = ""
) -> str:
    """A table with its notes.

    Args:
        columns: names in the head, escaped here.
        body: rows in HTML, as `html_row` makes them.
        notes: a line each, escaped here.
        above: HTML of a row over the head's.
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    told = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return (
        f"<table><thead>{above}<tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        f"<ul>{told}</ul>"
    )
