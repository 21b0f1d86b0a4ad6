"""Checks of a file of weights that every loader makes: what kind of file it is, and whether its numbers are finite."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

START = 512  # bytes that are looked at
MARKUP = re.compile(rb"<(!--|!doctype|\?xml|[a-z]{3,})")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def disguise(path: Path) -> str | None:
    """What a file under a weight's name is, where it is no weights: in words, with what to do. None if it may be some.

    Downloads that fail leave such files: a web page, an error in JSON, or the pointer that git keeps for a large file.
    """
    with path.open("rb") as file:
        start = file.read(START)
    text = start.removeprefix(BYTE_ORDER_MARK).lstrip().lower()
    if not start:
        return "is empty; get it again"
    if text.startswith(b"version https://git-lfs"):
        return "is a pointer of git-lfs, not weights; run `git lfs pull` in its repository, or download the file itself"
    if start.startswith(b"\x1f\x8b"):
        return "is compressed by gzip; unpack it first"
    if MARKUP.match(text):
        return "is a web page, not weights; delete it and get the file again"
    if text.startswith((b"{", b"[")) and all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start):
        return "is JSON, not weights; delete it and get the file again"
    return None


def require_weights_file(path: Path) -> None:
    """Require that a file may hold weights.

    Raises:
        ValueError: if it holds something else; says what.
    """
    if found := disguise(path):
        raise ValueError(f"{path} {found}")


def require_finite(state: Mapping[str, Tensor], origin: object) -> None:
    """Require that every number of some weights is there as such, and finite.

    Raises:
        ValueError: if one is not; names its tensor.
    """
    for key, value in state.items():
        if value.is_quantized or value.is_meta or value.is_complex() or value.layout != torch.strided:
            kind = "no numbers" if value.is_meta else f"{value.dtype} in the layout {value.layout}"
            raise ValueError(f"{origin} holds {kind} in {key}; get a file with plain real numbers")
        if not value.isfinite().all():
            raise ValueError(f"{origin} holds NaN or Inf in {key}; the file is damaged, get it again")
