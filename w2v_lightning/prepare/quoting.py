"""Dialect of a table: its delimiter, and whether quotation marks are CSV's quoting or characters of the text."""

import csv
import re
from collections.abc import Iterable
from typing import Any

from w2v_lightning.prepare.utterance import AUDIO_SUFFIXES

DELIMITERS = "|;\t,"
MAX_LINES = 100  # of one row; a quotation mark that is open for longer is not CSV's
AUDIO_NAME = re.compile(rf"\S({'|'.join(map(re.escape, AUDIO_SUFFIXES))})\b", re.IGNORECASE)


def dialect(lines: Iterable[str], usual: str) -> dict[str, Any]:
    """Return the arguments of csv's reader for a table.

    The delimiter is another than `usual` if the header has only that. In Common Voice's .tsv files, and in tables with
    |, quotation marks are ordinary characters, unless a spreadsheet or pandas has written the whole file again.

    Args:
        lines: the table's lines with their ends.
        usual: the delimiter that the file's name stands for.
    """
    lines = iter(lines)
    header = next(lines, "")
    delimiter = usual if usual in header else next((each for each in DELIMITERS if each in header), usual)
    if delimiter in "\t|" and not _is_quoted(header, lines, delimiter):
        return {"delimiter": delimiter, "quoting": csv.QUOTE_NONE}
    return {"delimiter": delimiter, "strict": True}


def _is_quoted(header: str, lines: Iterable[str], delimiter: str) -> bool:
    """Return whether every cell with a quotation mark is as CSV quotes it, and some only make sense so.

    A cell like "Hello" is not evidence, as it may be a sentence in quotation marks. Evidence are doubled marks, a
    quoted header, and tabs or line ends within quotation marks.
    """
    tab = re.escape(delimiter)
    cell = rf'(?:"(?:[^"]|"")*"|[^"{tab}\r\n]*)'
    row_of_cells = re.compile(rf"{cell}(?:{tab}{cell})*\r?\n?")
    opened_row = re.compile(rf'(?:{cell}{tab})*"(?:[^"]|"")*')
    if '"' in header and not row_of_cells.fullmatch(header):
        return False
    is_evident = '"' in header
    row, num_lines, num_delimiters = "", 0, header.count(delimiter)
    for line in lines:
        row, num_lines = row + line, num_lines + 1
        if '"' in row and row.count('"') % 2:
            if num_lines > MAX_LINES or not opened_row.fullmatch(row):
                return False
            continue
        if '"' in row:
            if not row_of_cells.fullmatch(row) or (num_lines > 1 and row.count(delimiter) > num_delimiters):
                return False  # in the second case, two marks far apart have joined rows
            is_evident |= num_lines > 1 or row.count(delimiter) > num_delimiters or _has_doubled(row, delimiter)
        row, num_lines = "", 0
    return is_evident and not row


def _has_doubled(row: str, delimiter: str) -> bool:
    return any('""' in cell[1:-1] for cell in row.strip("\r\n").split(delimiter))


def holds_rows(cells: Iterable[str], delimiter: str, num_columns: int) -> bool:
    """Return whether a cell of several lines looks like rows that a quotation mark without its partner has joined.

    A line of such a cell names an audio file, or has as many delimiters as a row of three columns or more.
    """
    return any(
        AUDIO_NAME.search(line) or (num_columns > 2 and line.count(delimiter) == num_columns - 1)
        for cell in cells
        if cell and "\n" in cell
        for line in cell.split("\n")[1:]
    )
