"""What a terminal shows: characters that it lacks become others, and names are never read as markup."""

import codecs
import io
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

WIDTH = 150  # of output that goes to a file
PLAIN = {
    "–": "-",
    "…": "...",
    "·": "-",
    "×": "x",
    "±": "+-",
    "†": "+",
    "↑": "^",
    "↓": "v",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "∞": "inf",
    "Δ": "delta ",
    "²": "^2",
    "³": "^3",
    "⁴": "^4",
}  # of what this project itself prints; another character becomes its escape, as Python writes it
_ERRORS = "cyclediff.plain"  # a name for `open(errors=...)`


def adapt_output() -> None:
    """From here on, standard output and errors take every text, whatever their encoding is."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)


def fitted(text: str) -> str:
    """A text with what standard output's encoding lacks replaced: done before columns are aligned."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, _ERRORS).decode(encoding)


class _Console(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(fitted(text), **options)


def console() -> Console:
    """A console for tables and lines; texts may hold names with brackets and colons, which are shown as they are."""
    options: Any = {"markup": False, "emoji": False, "highlight": False}
    found = _Console(**options)
    return found if found.is_terminal else _Console(width=WIDTH, **options)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(a) or a.encode("ascii", "backslashreplace").decode() for a in letters), error.end


codecs.register_error(_ERRORS, _replaced)
