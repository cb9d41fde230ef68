"""Text from elsewhere, such as names of classes and files, as it is shown: printable, short, on one line."""

from __future__ import annotations

__all__ = ["NAME", "csv_cell", "shown"]

#: Characters of the longest line, and of the longest name in a table.
LINE, NAME = 2_000, 100
#: With one of these, a spreadsheet takes a cell for a formula, which may run a program.
FORMULA = ("=", "+", "-", "@")


def shown(text: str, limit: int = LINE) -> str:
    """The text for a terminal, a log or a page.

    What is not printable is escaped as in Python: ends of lines, escape sequences of terminals, marks that
    reverse the direction of writing. The middle of a long text is left out, since a message begins with the
    place and ends with the remedy.

    Args:
        text: any text.
        limit: characters of the longest result.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(text) <= limit:
        return text
    half = (limit - len(" ... ")) // 2
    return f"{text[:half]} ... {text[-half:]}"


def csv_cell(text: str) -> str:
    """The text for a cell of a CSV file: as `shown`, with an apostrophe before what would be a formula."""
    cell = shown(text)
    return f"'{cell}" if cell.startswith(FORMULA) and not _is_number(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
