"""CSV files that people write: each cell under its header, or a sentence with the line's number."""

import csv
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cyclediff.errors import UserError

OPENING, CLOSING = frozenset("'‘‚“„”«"), frozenset("'’‘”“»")  # of quotes that are not a CSV's


def read_table(text: str, path: Path, needed: Sequence[str], extra: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV with a header.

    A comma inside a text that is not in quotes moves all that follows by a column. So every row must have a cell for
    each column, and its commas must be followed by a space everywhere or nowhere.

    Args:
        text: of the file.
        path: of the file, for messages.
        needed: columns that must be there; their cells must not be blank.
        extra: columns that may be there. Of others there is a warning.

    Returns:
        Where each row is, for people, and its cells by the names of their columns, in small letters.

    Raises:
        UserError: if it is no CSV, a column is missing or there twice, or a row's cells do not fit the columns.
    """
    try:
        lines = list(_lines(text, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise UserError(
            f'{path} is not a valid CSV ({error}); close every quote, and write "" for one inside'
        ) from error
    header = [name.strip().lower() for name in lines[0][1]] if lines else []
    if set(needed) - set(header) or len(set(header)) < len(header):
        raise UserError(
            f"the first line of {path} has the columns {', '.join(header) or '(none)'}; needed are "
            f"{', '.join(needed)}, and {' and '.join(extra)} if wanted, each once and separated by commas"
        )
    if unknown := sorted(set(header) - {*needed, *extra, ""}):
        warnings.warn(f"{path.name}: columns that are not used: {', '.join(unknown)}", stacklevel=2)
    unstripped = dict(_lines(text))
    spaced_header = any(name.startswith(" ") for name in unstripped.get(lines[0][0], ()))
    rows = []
    for index, (number, line) in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in line):
            continue
        where = f"{path.name}, row {index}"  # as a spreadsheet counts
        if number != index:
            where += f" (line {number})"
        if len(line) > len(header):
            raise UserError(
                f'{where}: {len(line)} cells for {len(header)} columns; put a text that has commas in "quotes"'
            )
        cells = dict(zip(header, line, strict=False))
        if len(line) < len(header) and all(cells.get(name, "").strip() for name in needed):
            raise UserError(
                f"{where}: {len(line)} cells for {len(header)} columns; write the empty ones, too: "
                f"{','.join(['…'] * len(line) + [''] * (len(header) - len(line)))}"
            )
        if _has_other_quotes([cell.strip() for cell in line]):
            raise UserError(
                f'{where}: a text is in single or curly quotes, which mean nothing in a CSV; write "quotes" instead'
            )
        if not spaced_header and _is_cut(line, unstripped.get(number, ())):
            raise UserError(
                f"{where}: a space follows some of its commas only, as in a text that has commas; put such a text in "
                '"quotes", or remove the space'
            )
        rows.append((where, cells))
    return rows


def _lines(text: str, **how: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV, each with the number of the line on which it begins."""
    reader, begins = csv.reader(io.StringIO(text, newline=""), **how), 1
    for row in reader:
        yield begins, row
        begins = reader.line_num + 1


def _has_other_quotes(cells: Sequence[str]) -> bool:
    """Whether quotes that a CSV does not know are around a cell, or around several that were one text with commas."""
    for index, cell in enumerate(cells):
        if cell[:1] in OPENING and not CLOSING & set(cell[1:-1]):
            return any(later[-1:] in CLOSING for later in (cell[1:], *cells[index + 1 :]))
    return False


def _is_cut(line: Sequence[str], unstripped: Sequence[str]) -> bool:
    """Whether a space follows some of a row's commas between cells with a text, and not others."""
    if len(line) != len(unstripped):  # quotes that begin after a space: the row knows how to write them
        return False
    spaces = {
        raw != cell
        for cell, raw in zip(line[1:], unstripped[1:], strict=True)
        if cell.strip() and (raw != cell or not cell.startswith(" "))
    }
    return len(spaces) > 1
