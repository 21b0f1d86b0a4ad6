"""A section as a LaTeX table for a paper."""

import re

from eval.report.rows import TableRow
from eval.report.sections import TIED_MEANS, Column, Section, cell_text, mark_of, spreads_of

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",
    "*": "{*}",
    "–": "--",
    "…": r"\dots{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "Δ": r"$\Delta$",
    "∞": r"$\infty$",
    "³": "$^3$",
    "⁴": "$^4$",
}  # a line that begins with [ or * would be read as an argument of the line break before it
NUMBER = re.compile(r"([+-]?\d+(?:\.\d+)?)(?: ±(\d+(?:\.\d+)?))?")


def to_latex(section: Section) -> str:
    r"""The section as a table environment; it needs \usepackage{booktabs}.

    The best of a column is bold, and what is tied with it is underlined. Protocols and notes are comments
    below the table. What LaTeX reads as commands is escaped; letters beyond Latin need a Unicode engine.
    """
    rows = [[escape(row.label), *(_cell(row, c) for c in section.columns)] for row in section.rows]
    header = ["Method", *(_header(column) for column in section.columns)]
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{_caption(section)}}}",
        rf"\begin{{tabular}}{{l{'r' * len(section.columns)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        *(f"% {' '.join(note.split())}" for note in section.notes),
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """The text on one line, with LaTeX's special characters escaped."""
    return "".join(SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def _header(column: Column) -> str:
    return escape(column.title).replace(r"$\times$10$^", r"$\times 10^")


def _cell(row: TableRow, column: Column) -> str:
    text = cell_text(row, column, interval=True)
    found = NUMBER.match(text)
    if not found:
        return escape(text)
    number, spread = found.groups()
    mark = mark_of(row, column)
    number = {"": number, "best": rf"\mathbf{{{number}}}", "tied": rf"\underline{{{number}}}"}[mark]
    below = rf"_{{\pm {spread}}}" if spread else ""
    return f"${number}{below}$ {escape(text[found.end() :])}".rstrip()


def _caption(section: Section) -> str:
    marks = {mark for row in section.rows for mark in row.marks.values()}
    texts = [f"{section.title}.", *section.warnings]
    if "best" in marks:
        texts.append("Bold: best of its column.")
    if "tied" in marks:
        texts.append(f"Underlined: {TIED_MEANS}.")
    spreads = spreads_of(section.rows)
    if "ci95" in spreads:
        texts.append("±: half of the 95 % interval, by bootstrap over images.")
    if "std" in spreads:
        texts.append("±: standard deviation over seeds.")
    return escape(" ".join(texts))
