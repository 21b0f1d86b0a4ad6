import re

import pytest

from eval.report.latex import escape, to_latex
from eval.report.rows import TableRow
from eval.report.sections import Column, Section

COLUMNS = [
    Column("fid", "FID", 2, higher=False),
    Column("kid", "KID×10³", 2, 1000, higher=False),
    Column("paper_fid", "paper FID", 2),
    Column("psnr", "PSNR dB", 2, higher=True),
]


def row(label, fid, kid, psnr, marks=None, std=None, **more):
    metrics = {"psnr": {"ci95": [psnr - 0.5, psnr + 0.5]}, "fid": {"ci95": None}, "kid": {"ci95": None}}
    return TableRow(label, [], metrics, {"fid": fid, "kid": kid, "psnr": psnr, **more}, std or {}, marks or {})


def section(**changes):
    rows = [
        row("m_1 (η=0.1, 50 %)", 20.0, 0.004, 18.0, {"fid": "best", "psnr": "tied"}, paper_fid="18.50 ±0.25 p*"),
        row(r"[\input{x}] & # $ ~ ^ { } < >", 30.0, None, 18.5, {"psnr": "best"}),
    ]
    fields = {
        "title": "t: 2 images_of \\photos",
        "warnings": ["Pets: 100 % small."],
        "notes": ["FID ↓: a\n\\b"],
    }
    return Section(**{**fields, "columns": COLUMNS, "rows": rows, "data": {}, "picture": None, **changes})


def parse(text):
    """A reader of just enough LaTeX: environments, braces and mathematics that close, and the cells of each row."""
    code = re.sub(r"(?<!\\)%.*", "", text)
    environments = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", code):
        if kind == "begin":
            environments.append(name)
        else:
            assert environments.pop() == name
    assert not environments
    plain = re.sub(r"\\[\\{}$&%#_]", "", code)
    depth = 0
    for letter in plain:
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    assert "_" not in re.sub(r"\$[^$]*\$", "", plain)
    assert not set(plain) & set("#~^") - {"^"}
    assert "^" not in re.sub(r"\$[^$]*\$", "", plain)
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", code).group(1)
    body = re.search(r"\\toprule(.*)\\bottomrule", code, re.DOTALL).group(1).replace(r"\midrule", "")
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)&", line)] for line in body.split(r" \\" + "\n") if line.strip()
    ]
    assert {len(row) for row in rows} == {len(columns)}
    return rows


def test_the_table_reads_as_latex():
    header, first, second = parse(to_latex(section()))
    assert header == [
        "Method",
        r"FID $\downarrow$",
        r"KID$\times 10^3$ $\downarrow$",
        "paper FID",
        r"PSNR dB $\uparrow$",
    ]
    assert first[1:] == [r"$\mathbf{20.00}$", "$4.00$", r"$18.50_{\pm 0.25}$ p{*}", r"$\underline{18.00}_{\pm 0.50}$"]
    assert second[1:] == ["$30.00$", "--", "--", r"$\mathbf{18.50}_{\pm 0.50}$"]
    assert first[0] == r"m\_1 (η=0.1, 50 \%)"


def test_a_row_cannot_begin_with_an_argument_or_a_command():
    label = parse(to_latex(section()))[2][0]
    assert label.startswith(r"{[}\textbackslash{}input\{x\}")


def test_the_caption_says_what_the_numbers_are():
    text = to_latex(section())
    caption = re.search(r"\\caption\{(.*)\}", text).group(1)
    assert caption.startswith(r"t: 2 images\_of \textbackslash{}photos. Pets: 100 \% small.")
    tied = r"Underlined: tied with the best of the column (paired bootstrap, 95 \%)"
    for said in ("Bold: best", tied, r"$\pm$: half of the 95 \% interval"):
        assert said in caption
    plain = to_latex(section(rows=[row("m", 1.0, 1.0, 1.0, std={"psnr": 0.1})]))
    assert "Bold" not in plain
    assert "standard deviation over seeds" in plain


def test_notes_are_comments_of_one_line():
    assert to_latex(section()).endswith("\\end{table}\n% FID ↓: a \\b\n")


@pytest.mark.parametrize("letter", list("\\{}$&%#_~^"))
def test_each_special_letter_is_escaped_once(letter):
    text = escape(f"a{letter}b")
    assert text.startswith("a\\")
    assert text.endswith("b")
    parse(to_latex(section(title=letter, rows=[row(letter, 1.0, 1.0, 1.0)])))
