"""Terminals that lack characters, and names that look like markup: everything is shown, and nothing fails."""

import io
import json
import os
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from rich import box
from rich.table import Table

from cyclediff.runtime.progress import ItemProgress
from eval import evaluate, terminal

from .forking import finish
from .test_run import SMALL


def output_in(monkeypatch, encoding):
    """Standard output in an encoding; what is printed there comes back as bytes."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    terminal.adapt_output()
    return written


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"FD v 1 +-2 +, KDx10^3 - 3 ... 4 - b\\xfccher \\u718a\n"),
        ("latin-1", b"FD v 1 \xb12 +, KD\xd710\xb3 - 3 ... 4 \xb7 b\xfccher \\u718a\n"),
        ("cp1252", b"FD v 1 \xb12 \x86, KD\xd710\xb3 \x96 3 \x85 4 \xb7 b\xfccher \\u718a\n"),
    ],
)
def test_what_an_encoding_lacks_is_replaced(encoding, expected, monkeypatch):
    written = output_in(monkeypatch, encoding)
    print("FD ↓ 1 ±2 †, KD×10³ – 3 … 4 · bücher 熊")
    assert written.getvalue() == expected


def test_utf_8_is_not_touched_but_for_names_that_are_no_text(monkeypatch):
    written = output_in(monkeypatch, "utf-8")
    print("FD ↓ … 熊 \udcff")
    assert written.getvalue() == "FD ↓ … 熊 \\udcff\n".encode()


def test_other_errors_of_codecs_stay_errors():
    with pytest.raises(UnicodeDecodeError):
        b"\xff".decode("utf-8", "cyclediff.plain")


def test_columns_are_aligned_after_replacement(monkeypatch):
    written = output_in(monkeypatch, "ascii")
    table = Table("name", "value", title="bär[v2] :cat:", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_row("[/b]", "1 ± 2 … 3")
    terminal.console().print(table)
    lines = written.getvalue().decode().splitlines()
    assert lines[0].rstrip() == r"b\xe4r[v2] :cat:"
    assert lines[2] == "| name | value        |"
    assert lines[4] == "| [/b] | 1 +- 2 ... 3 |"
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize("name", ["gen[v2]", "z[/b]", "[red]x[/red]", ":cat:"])
def test_a_method_s_name_is_shown_as_it_is(name, monkeypatch):
    written = output_in(monkeypatch, "utf-8")
    with ItemProgress(name, 2) as progress:
        progress.show_done(2)
    assert f"{name:>16} " in written.getvalue().decode()


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Results and sources, and other files; the second has its accents in letters of their own."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for folder, names in (("z[/b]", ("a", "e\u0301")), ("src", ("a", "\u00e9"))):
        os.makedirs(folder)
        for pixels, name in zip(noise, names, strict=True):
            Image.fromarray(pixels).save(f"{folder}/{name}.png")
    for name in ("notes.md", "b.heic", ".DS_Store", "Thumbs.db", "edits.csv.bak"):
        (tmp_path / "src" / name).touch()
    Image.new("RGB", (64, 64)).save("z[/b]/other.jpg")
    return ["--generated", "z[/b]", "--source", "src", "--protocol", "pets"]


def test_evaluation_of_a_folder_with_brackets(folders, capsys, recwarn):
    """The name is shown whole, é is é, and what is passed over is said once."""
    evaluate.main(folders)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].rstrip() == "z[/b]: 2 images, protocol pets/2"
    assert "without a result" not in printed
    assert "results without a source" not in printed
    assert [str(warning.message) for warning in recwarn if "passed over" in str(warning.message)] == [
        "z[/b]: 1 file passed over (1 .jpg)",
        "src: 3 files passed over (1 .bak, 1 .heic, 1 .md)",
    ]


def test_a_list_of_edits_spells_a_name_as_another_system_does(folders, tmp_path, capsys):
    rows = "id,source,target,category,mask\na,a cat,a dog,,\ne\u0301,a dog,a cat,,\n"
    (tmp_path / "src" / "edits.csv").write_text(rows, encoding="utf-8")
    evaluate.main([*folders[:-1], "pets_edit"])
    assert capsys.readouterr().out.splitlines()[0].rstrip() == "z[/b]: 2 images, protocol pets_edit/2"


@dataclass(frozen=True)
class Encoded:
    """A terminal of another encoding, as PYTHONIOENCODING makes it."""

    encoding: str

    def __call__(self) -> None:
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding=self.encoding, closefd=False) for n in (1, 2))


def test_a_run_on_an_ascii_terminal_is_finished(tmp_path):
    (tmp_path / "bär").mkdir()
    for n in range(2):
        Image.effect_noise((64, 64), 50 + n).save(tmp_path / "bär" / f"{n}.png")
    (tmp_path / "bär" / "x.heic").touch()
    row = [SMALL, "method=sdedit", "steps=few", "data.source=bär", "paths.outputs=out"]
    code, printed = finish(row, tmp_path / "log", Encoded("ascii"), tmp_path)
    assert code == 0, printed
    assert printed.isascii()
    assert r"warning: b\xe4r: 1 file passed over (1 .heic)" in printed.splitlines()
    assert any(line.startswith("| method |   FD v | KDx10^3 v | PSNR ^ |") for line in printed.splitlines()), printed
    (record,) = (json.loads(path.read_bytes()) for path in tmp_path.glob("out/*/*/run.json"))
    assert record["status"] == "finished"
    assert record["data"]["name"] == "bär"
    assert record["command"].endswith("""'data.source="bär"' paths.outputs=out""")
