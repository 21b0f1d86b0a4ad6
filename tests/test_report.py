"""From records on disk to tables: numbers, columns, sections and the command line."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from eval.report.grid import GAP, LABEL, LINE, TILE
from eval.report.sections import read_task
from eval.report.tables import main, to_csv, to_markdown, to_rich, write_page, write_tables

from .finished_run import metric, rewrite, scores_of, write_csv, write_run, write_scores

ROOT = Path(__file__).parents[1]


def make_run(task, method, *, fid=20.0, kid=0.004, protocol="fid/x", name="pets/2", **more):
    """A run with FID, KID and PSNR."""
    folder = write_run(task, method, **more)
    values = {
        "fid": metric("fid", fid, protocol=protocol),
        "kid": metric("kid", kid),
        "psnr": metric("psnr", 18.0, [17.5, 18.5]),
    }
    write_scores(folder, values, protocol=name)
    return folder


def read_sections(task):
    return read_task(task)[0]


@pytest.fixture
def task(tmp_path):
    (tmp_path / "t").mkdir()
    return tmp_path / "t"


def test_units_and_intervals_are_shown(task):
    make_run(task, "m")
    text = to_markdown(read_sections(task)[0])
    assert "| method | FID ↓ | KID×10³ ↓ | PSNR dB ↑ | forwards/image | s/image | images/s |" in text
    assert "| m | 20.00 | 4.00 | 18.00 ±0.50 | 50 | 0.50 | 2.00 |" in text
    assert "Pets, a synthetic benchmark" in text
    assert "KID×10³ ↓: kid/x" in text


def test_columns_are_those_of_the_records(task):
    """A metric that this code does not know, with a header, digits and scale of its own."""
    folder = write_run(task, "m")
    own = metric("psnr", 0.5, None, "own/x") | {"header": "own %", "digits": 1, "scale": 100, "higher_is_better": False}
    write_scores(folder, {"own": own, "psnr": metric("psnr", 18.0)})
    text = to_markdown(read_sections(task)[0])
    assert "| method | own % ↓ | PSNR dB ↑ |" in text
    assert "| m | 50.0 | 18.00 |" in text
    (row,) = csv.DictReader(io.StringIO(to_csv(read_sections(task))))
    assert (row["own"], row["own_protocol"]) == ("0.5", "own/x")


def test_gradients_have_a_column_where_there_are_any(task):
    make_run(task, "m")
    assert "backwards/image" not in to_markdown(read_sections(task)[0])
    make_run(task, "n", costs={"forwards_per_image": 60, "backwards_per_image": 40})
    text = to_markdown(read_sections(task)[0])
    assert "| forwards/image | backwards/image | s/image | images/s |" in text
    assert "| 50 | 0 | 0.50 | 2.00 |" in text
    assert "| 60 | 40 | – | – |" in text


def test_other_images_protocols_or_references_get_their_own_table(task):
    make_run(task, "m")
    make_run(task, "n")
    make_run(task, "m", data="d2")
    make_run(task, "m", protocol="fid/y")
    folder = make_run(task, "m")
    rewrite(scores_of(folder) / "metrics.json", lambda c: c.update(reference={"name": "dogs", "digest": "d"}))
    sections = read_sections(task)
    assert sorted(len(section.rows) for section in sections) == [1, 1, 1, 2]
    assert len({section.title for section in sections}) == 4


def test_a_run_can_have_several_scores(task):
    folder = make_run(task, "m")
    write_scores(folder, {"psnr": metric("psnr", 17.0)}, protocol="pets/2")
    make_run(task, "n")
    first, second = read_sections(task)
    assert [row.label for row in first.rows] == ["m", "n"]
    assert [row.label for row in second.rows] == ["m"]
    assert "| m | 17.00 |" in to_markdown(second)
    lines = list(csv.DictReader(io.StringIO(to_csv([first, second]))))
    assert len({(line["folder"], line["scores"]) for line in lines}) == 3


def test_unfinished_runs_are_not_shown(task):
    make_run(task, "m", status="running")
    write_run(task, "n")
    sections, running = read_task(task)
    assert sections == []
    assert [run.state for run in running] == ["running, 3 of 3 images", "made, and not scored yet"]


def test_a_missing_value_is_a_dash(task):
    make_run(task, "m", fid=None)
    make_run(task, "n")
    assert "| m | – |" in to_markdown(read_sections(task)[0])


def test_csv_holds_raw_values(task):
    folder = make_run(task, "m")
    (row,) = csv.DictReader(io.StringIO(to_csv(read_sections(task))))
    assert (row["kid"], row["psnr_low"], row["fid_protocol"]) == ("0.004", "17.5", "fid/x")
    assert (row["folder"], row["scores"]) == (folder.name, scores_of(folder).name)


@pytest.mark.parametrize("file", ["run.json", "metrics.json"])
def test_records_of_an_earlier_version_are_left_out(task, file):
    folder = make_run(task, "m")
    make_run(task, "n")
    place = folder if file == "run.json" else scores_of(folder)
    rewrite(place / file, lambda content: content.update(schema=1))
    with pytest.warns(UserWarning, match="earlier") as caught:
        (section,) = read_sections(task)
    assert [row.label for row in section.rows] == ["n"]
    sentence = f"{place} was made by an earlier version (schema 1); delete it, and its command makes it again"
    assert [str(warning.message) for warning in caught] == [sentence]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"schema": 2}', b'{"task": "t"}', b"\xff"])
@pytest.mark.parametrize("file", ["run.json", "metrics.json"])
def test_damaged_records_are_left_out(task, file, content):
    folder = make_run(task, "m")
    place = folder if file == "run.json" else scores_of(folder)
    (place / file).write_bytes(content)
    with pytest.warns(UserWarning, match=f"{place} is left out: its {file} is missing or damaged"):
        assert read_sections(task) == []


def test_the_report_needs_no_torch():
    code = "import sys, eval.report.tables; assert 'numpy' in sys.modules; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_tables_and_pictures_are_written_apart(task):
    make_run(task, "m", side=8)
    write_tables(task)
    assert "grid-d1.png" in (task / "table.md").read_text()
    assert {path.name for path in task.iterdir() if path.is_file()} == {
        "table.md", "table.csv", "table.tex", ".table.lock"
    }  # fmt: skip
    write_page(task)
    assert (task / "report.html").exists()
    with Image.open(task / "grid-d1.png") as image, Image.open(task / "data" / "cats-d1" / "a.png") as first:
        assert image.size == (LABEL + 3 * (TILE + GAP) + GAP, 3 * (TILE + GAP) + GAP)
        assert image.getpixel((LABEL + 5, GAP + 5)) == first.convert("RGB").getpixel((0, 0))


CURVES = {"energy": {"title": "Energy", "x": {"header": "step"}, "y": {"header": "J"}, "points": [[0, 1], [1, 3]]}}


def test_an_analysis_has_a_table_and_no_picture(task):
    folder = write_run(task, "m", images=False, study="similarity", costs={})
    write_scores(folder, {"psnr": metric("psnr", 18.0)}, curves=CURVES)
    write_tables(task)
    write_page(task)
    text = (task / "table.md").read_text()
    assert "t: similarity, 3 images of cats" in text
    assert "| m | 18.00 |\n" in text
    assert "first images" not in text
    assert not list(task.glob("grid-*"))


@pytest.mark.parametrize("width", [60, 200])
def test_a_terminal_of_any_width_shows_every_number(task, width):
    make_run(task, "cyclediffusion")
    make_run(task, "sdedit", fid=30.0)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(to_rich(read_sections(task)[0], width))
    text = console.export_text()
    for shown in ("cyclediffusion", "sdedit", "FID ↓", "20.00", "30.00", "KID×10³ ↓", "forwards/image"):
        assert shown in text
    assert "…" not in text


NAMES = ["gen[v2]", "z[/b]", "[red]x", ":cat:", "a|b", "<b>bold"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_markup(task, name, capsys):
    """Neither the terminal's, nor Markdown's where a name would end its cell or begin HTML."""
    folder = make_run(task, name)
    rewrite(folder / "run.json", lambda run: run["data"].update(name=name))
    main([str(task)])
    printed = capsys.readouterr().out.splitlines()
    assert f"t: 3 images of {name}, protocol pets/2" in [line.rstrip() for line in printed]
    assert [line for line in printed if line.startswith(f"  {name}  ")]
    lines = (task / "table.md").read_text().splitlines()
    escaped = name.replace("|", r"\|").replace("<", r"\<")
    assert lines[0] == f"## t: 3 images of {escaped}, protocol pets/2"
    (row,) = (line for line in lines if line.startswith(f"| {escaped} |"))
    assert len(re.findall(r"(?<!\\)\|", row)) == lines[4].count("|")


def test_random_inception_alone_is_named(task):
    make_run(task, "m", protocol="fid/RANDOM-inception/x", synthetic=False)
    section = read_sections(task)[0]
    assert section.title.startswith("RANDOM WEIGHTS")
    assert "RANDOM WEIGHTS (fid)" in to_markdown(section)
    folder = make_run(task, "n", protocol="fid/RANDOM-inception/x", synthetic=False)
    rewrite(scores_of(folder) / "metrics.json", lambda content: content.update(random_weights=["features"]))
    section = read_sections(task)[0]
    assert "RANDOM WEIGHTS (features, fid)" in to_markdown(section)
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(to_rich(section, 150))
    assert "RANDOM WEIGHTS" in console.export_text().splitlines()[0]


def test_random_and_trained_weights_get_tables_of_their_own(task):
    make_run(task, "m")
    make_run(task, "n", random_weights=["target"])
    assert sorted(section.title.startswith("RANDOM") for section in read_sections(task)) == [False, True]


def spread(folder, psnr):
    """Give a run the same PSNR on all images, and so on all resamples."""
    rewrite(scores_of(folder) / "metrics.json", lambda content: content["metrics"]["psnr"].update(value=psnr))
    write_csv(scores_of(folder) / "bootstrap.csv", [["psnr"], *[[psnr]] * 1000])


def test_the_best_is_bold_and_ties_have_a_mark(task):
    for method, psnr in (("m", 18.0), ("n", 18.0), ("o", 17.0)):
        spread(make_run(task, method), psnr)
    text = to_markdown(read_sections(task)[0])
    assert "| m | **20.00** | **4.00** | **18.00 ±0.50** |" in text
    assert "| n | 20.00 | 4.00 | 18.00 ±0.50 † |" in text
    assert "| o | 20.00 | 4.00 | 17.00 ±0.50 |" in text
    assert "†: tied with the best of the column (paired bootstrap, 95 %)" in text
    assert "≈" not in text
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(to_rich(read_sections(task)[0], 200))
    assert "† tied with the best of the column (paired bootstrap, 95 %)" in console.export_text()


def test_claims_are_judged(task):
    for method, psnr in (("m", 18.0), ("n", 17.0)):
        spread(make_run(task, method), psnr)
    claims = [{"text": f"{a} over {b}", "method": a, "than": b, "better": ["psnr"]} for a, b in ("mn", "nm", "mo")]
    (task / "claims.json").write_text(json.dumps(claims))
    text = to_markdown(read_sections(task)[0])
    assert "holds: m over n (bootstrap support 100 %)" in text
    assert "fails: n over m (bootstrap support 0 %)" in text
    assert "undecided: m over o (a run or a number is missing)" in text


def test_random_weights_support_no_claim(task):
    for method, psnr in (("m", 18.0), ("n", 17.0)):
        spread(make_run(task, method, random_weights=["target"]), psnr)
    claims = [{"text": "m over n", "method": "m", "than": "n", "better": ["psnr"]}]
    (task / "claims.json").write_text(json.dumps(claims))
    assert "m over n" not in to_markdown(read_sections(task)[0])


def test_equal_titles_are_distinguished_by_their_images(task):
    make_run(task, "m")
    make_run(task, "m", data="d2")
    assert sorted(section.title.rpartition(" ")[2] for section in read_sections(task)) == ["d1)", "d2)"]


def test_the_command_writes_a_task(task, capsys):
    make_run(task, "m")
    make_run(task, "slow", status="running", start="2026-01-01T00:00:00+00:00")
    main([str(task)])
    printed = capsys.readouterr().out
    assert "20.00" in printed
    assert "running, 3 of 3 images; begun 2026-01-01" in printed
    table, _, unfinished = (task / "table.md").read_text().partition("## Not finished")
    assert "slow" not in table
    assert "slow" in unfinished
    for name in ("table.md", "table.csv", "table.tex", "report.html"):
        assert (task / name).stat().st_size > 100


def test_a_failed_run_is_listed_with_its_reason(task):
    make_run(task, "m")
    make_run(task, "n", status="failed", error="no <memory>")
    write_tables(task)
    write_page(task)
    assert "failed after 3 of 3 images: no <memory>" in (task / "table.md").read_text()
    page = (task / "report.html").read_text()
    assert "failed after 3 of 3 images: no &lt;memory&gt;" in page
    assert "<memory>" not in page
    assert len(list(csv.DictReader((task / "table.csv").open()))) == 1


def test_the_command_takes_some_runs(task, tmp_path, capsys):
    one, two, other = make_run(task, "m"), make_run(task, "n"), make_run(task, "m", protocol="fid/y")
    main([str(one), str(two), "--output", str(tmp_path / "out")])
    assert [row["method"] for row in csv.DictReader((tmp_path / "out" / "table.csv").open())] == ["m", "n"]
    outside = make_run(tmp_path / "out", "m")
    capsys.readouterr()
    for arguments, sentence in {
        (one, other): "do not fit into one table",
        (one, outside): "runs of different tasks (out, t)",
        (one, task): "is no folder of a run",
        (tmp_path / "nothing",): "is no folder of a run",
        (one, two): "give --output DIR",
    }.items():
        more = [] if sentence.startswith("give") else ["--output", str(tmp_path / "more")]
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, arguments), *more])
        captured = capsys.readouterr()
        assert stopped.value.code == 2
        assert sentence in captured.err
        assert captured.err.count("\n") == 1


def test_the_picture_shows_the_target_texts(task):
    make_run(task, "m", truth=False)
    lines = ["id,source,target,category,mask", *(f'{stem},a cat,"a {stem}, red",,' for stem in "abc")]
    (task / "data" / "cats-d1" / "edits.csv").write_text("\n".join(lines))
    write_page(task)
    with Image.open(task / "grid-d1.png") as image:
        assert image.height == LINE + 2 * (TILE + GAP) + GAP
        head = image.convert("L").crop((LABEL, 0, image.width, LINE))
        assert head.getextrema()[0] < 100
