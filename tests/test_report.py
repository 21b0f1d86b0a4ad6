import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from rich.console import Console

from eval.report.grid import GAP, LABEL, LINE, TILE, draw_grid, wrap
from eval.report.sections import read_sections
from eval.report.tables import main, to_csv, to_markdown, to_rich, write_tables


def make_run(
    task: Path,
    method: str,
    *,
    fid=20.0,
    kid=0.004,
    data="d1",
    protocol="fid/x",
    status="finished",
    record=None,
    name="pets/1",
    **settings,
):
    identity = {"task": "t", "protocol": name, "method": {"name": method, **settings}, "seed": 1}
    folder = task / f"{method}-{data}-{len(list(task.iterdir()))}"
    (folder / "images").mkdir(parents=True)
    source = task / "data" / f"photos-{data}"
    source.mkdir(parents=True, exist_ok=True)
    for place in (source, folder / "images"):
        for stem in ("a", "b"):
            Image.new("RGB", (8, 8), "red").save(place / f"{stem}.png")
    costs = {"network_evaluations_per_image": 50, "seconds_per_image": 0.5, "images_per_second": 2.0}
    about = {"name": "photos", "digest": data, "n": 2, "source": source.name, "counterpart": None, "dataset": "set"}
    run = {"identity": identity, "status": status, "embedded": True, "data": about, **costs}
    run |= {"random_weights": [], "published_settings": True, **(record or {})}
    (folder / "run.json").write_text(json.dumps(run))
    metrics = {
        "fid": {"value": fid, "ci95": None, "protocol": protocol},
        "kid": {"value": kid, "ci95": None, "protocol": "kid/x"},
        "psnr": {"value": 18.0, "ci95": [17.5, 18.5], "protocol": "psnr/x"},
    }
    (folder / "metrics.json").write_text(json.dumps({"schema": 1, "metrics": metrics}))
    return folder


@pytest.fixture
def task(tmp_path):
    (tmp_path / "t").mkdir()
    return tmp_path / "t"


def test_units_and_intervals_are_shown(task):
    make_run(task, "m")
    text = to_markdown(read_sections(task)[0])
    assert "KID×10³ ↓" in text
    assert "| m | 20.00 | 4.00 | 18.00 ±0.50 | 50 | 0.50 | 2.00 |" in text
    assert "Embedded world" in text
    assert "kid/x" in text


def test_other_images_or_protocols_get_their_own_table(task):
    make_run(task, "m")
    make_run(task, "n")
    make_run(task, "m", data="d2")
    make_run(task, "m", protocol="fid/y")
    sections = read_sections(task)
    assert sorted(len(section.rows) for section in sections) == [1, 1, 2]


def test_unfinished_runs_are_not_shown(task):
    make_run(task, "m", status="running")
    assert read_sections(task) == []


def test_runs_of_one_method_are_told_apart_by_what_differs(task):
    make_run(task, "m", eta=0.1, T=10)
    make_run(task, "m", eta=1.0, T=10)
    make_run(task, "n", eta=1.0)
    assert [label for label, _ in read_sections(task)[0].rows] == ["m (eta=0.1)", "m (eta=1.0)", "n"]


def test_a_missing_value_is_a_dash(task):
    make_run(task, "m", fid=None)
    make_run(task, "n")
    assert "| m | – |" in to_markdown(read_sections(task)[0])


def test_csv_holds_raw_values(task):
    make_run(task, "m")
    (row,) = csv.DictReader(io.StringIO(to_csv(read_sections(task))))
    assert (row["kid"], row["psnr_low"], row["fid_protocol"]) == ("0.004", "17.5", "fid/x")


def test_tables_and_picture_are_written(task):
    make_run(task, "m")
    write_tables(task)
    assert "grid-d1.png" in (task / "table.md").read_text()
    with Image.open(task / "grid-d1.png") as image:
        assert image.size == (LABEL + 2 * (TILE + GAP) + GAP, 2 * (TILE + GAP) + GAP)
        assert image.getpixel((LABEL + 5, GAP + 5)) == (255, 0, 0)


@pytest.mark.parametrize("width", [60, 200])
def test_a_terminal_of_any_width_shows_every_number(task, width):
    make_run(task, "cyclediffusion")
    make_run(task, "sdedit", fid=30.0)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(to_rich(read_sections(task)[0], width))
    text = console.export_text()
    for shown in ("cyclediffusion", "sdedit", "FID ↓", "20.00", "30.00", "KID×10³ ↓", "NFE/image"):
        assert shown in text
    assert "…" not in text


def test_the_grid_takes_the_first_images(tmp_path):
    for stem, colour in {"b": "blue", "a": "red", "c": "lime"}.items():
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{stem}.png")
    page = draw_grid([("x", tmp_path)], count=2)
    assert [page.getpixel((LABEL + k * (TILE + GAP) + 9, 20)) for k in range(2)] == [(255, 0, 0), (0, 0, 255)]


PAPER = {
    "sources": {"S1": "a table", "S2": "another"},
    "values": [
        {"method": "m", "metric": "fid", "value": 18.5, "std": 0.25, "protocol": "egsde", "verification": "primary",
         "source": "S1"},
        {"method": "m", "metric": "kid", "value": 0.005, "protocol": None, "verification": "secondary", "source": "S2",
         "note": "perhaps computed anew"},
        {"method": "other", "metric": "psnr", "value": 1.0, "protocol": "egsde", "verification": "primary",
         "source": "S1"},
    ],
}  # fmt: skip


def with_paper(task, **record):
    make_run(task, "m", name="egsde/1", record={"embedded": False, **record})
    (task / "paper.json").write_text(json.dumps(PAPER))
    return to_markdown(read_sections(task)[0])


def test_a_difference_is_shown_where_protocols_agree(task):
    text = with_paper(task)
    assert "| method | FID ↓ | paper FID | Δ FID | KID×10³ ↓ | paper KID×10³ | PSNR dB ↑ | NFE/image" in text
    assert "| m | 20.00 | 18.50 ±0.25 p | +1.50 | 4.00 | 5.00 s* | 18.00 ±0.50 | 50 |" in text
    assert "p: in the paper itself" in text
    assert "s: re-tabulated" in text
    assert "published under another protocol (unknown)" in text
    assert "S1: a table" in text
    assert "m, KID×10³ ↓: perhaps computed anew" in text


@pytest.mark.parametrize(
    "record",
    [
        {
            "data": {
                "name": "photos",
                "digest": "d1",
                "n": 2,
                "source": "photos-d1",
                "counterpart": None,
                "dataset": None,
            }
        },
        {"published_settings": False},
    ],
    ids=["other images", "other settings"],
)
def test_no_difference_for_other_images_or_settings(record, task):
    text = with_paper(task, **record)
    assert "| 18.50 ±0.25 p* |" in text
    assert "Δ" not in text.split("\n\n")[2]


def test_no_difference_under_another_protocol(task):
    make_run(task, "m", name="cyclediffusion/1", record={"embedded": False})
    (task / "paper.json").write_text(json.dumps(PAPER))
    text = to_markdown(read_sections(task)[0])
    assert "18.50 ±0.25 p*" in text
    assert "Δ" not in text


@pytest.mark.parametrize("record", [{"random_weights": ["target"]}, {"embedded": True}], ids=["random", "embedded"])
def test_random_and_embedded_numbers_never_stand_beside_a_papers(record, task):
    text = with_paper(task, **record)
    assert "18.50" not in text
    assert ("RANDOM WEIGHTS" if "random_weights" in record else "Embedded world") in text


def test_a_random_inception_alone_is_told_too(task):
    make_run(task, "m", protocol="fid/RANDOM-inception/x", record={"embedded": False})
    section = read_sections(task)[0]
    assert section.title.startswith("RANDOM WEIGHTS")
    assert "RANDOM WEIGHTS (Inception)" in to_markdown(section)
    console = Console(width=150, record=True)
    console.print(to_rich(section, 150))
    assert "RANDOM WEIGHTS" in console.export_text().splitlines()[0]


def test_random_and_trained_weights_get_tables_of_their_own(task):
    make_run(task, "m")
    make_run(task, "n", record={"random_weights": ["target"]})
    assert sorted(section.title.startswith("RANDOM") for section in read_sections(task)) == [False, True]


# zero-shot editing


def edit_run(task, method="m", unselected=None, images=("a", "b"), **record):
    """A run of an editing task: the metrics of one, and a source folder with texts."""
    folder = make_run(task, method, record=record)
    values = {"psnr": 18.0, "ssim": 0.7, "l2": 50.0, "clip": 0.31, "dclip": 0.25, "edit_error": 0.1, "kept_error": 0.05}
    values |= {"background_psnr": 25.0, "background_ssim": 0.9, "background_mse": 0.0219}
    metrics = {key: {"value": value, "ci95": None, "protocol": f"{key}/x"} for key, value in values.items()}
    for key, value in (unselected or {}).items():
        metrics[key]["unselected"] = value
    (folder / "metrics.json").write_text(json.dumps({"schema": 1, "metrics": metrics}))
    run = json.loads((folder / "run.json").read_text())
    lines = ["id,source,target,category,mask", *(f'{stem},a cat,"a {stem}, red",,' for stem in images)]
    (task / "data" / run["data"]["source"] / "edits.csv").write_text("\n".join(lines))
    return folder


def rewrite(folder, **changes):
    run = json.loads((folder / "run.json").read_text())
    run["data"] |= changes
    (folder / "run.json").write_text(json.dumps(run))


def test_scores_of_edits_have_columns(task):
    edit_run(task)
    (section,) = read_sections(task)
    text = to_markdown(section)
    assert (
        "| method | PSNR dB ↑ | SSIM ↑ | L2 ↓ | CLIP ↑ | D-CLIP ↑ | edit error ↓ | others' error ↓ | background PSNR ↑ "
        "| background SSIM ↑ | background MSE×10⁴ ↓ | NFE/image | s/image | images/s |"
    ) in text
    assert "| m | 18.00 | 0.700 | 50.00 | 0.310 | 0.250 | 0.100 | 0.050 | 25.00 | 0.900 | 219.00 | 50 |" in text
    assert "FID" not in text


SELECTION = {"candidates": 540, "metric": "dclip", "asked": {"trials": 15}}


def test_selected_and_unselected_stand_side_by_side(task):
    means = {"dclip": 0.1, "clip": 0.29, "psnr": 20.5, "ssim": 0.75, "l2": 45.0}
    edit_run(task, selection=SELECTION, unselected=means)
    edit_run(task, "n", selection={**SELECTION, "candidates": 36})
    (section,) = read_sections(task)
    text = to_markdown(section)
    assert (
        "| method | PSNR dB ↑ | PSNR dB, all | SSIM ↑ | SSIM, all | L2 ↓ | L2, all | CLIP ↑ | CLIP, all | D-CLIP ↑ "
        "| D-CLIP, all | edit error ↓ |"
    ) in text
    assert (
        "| m (best of 540 by dclip) | 18.00 | 20.50 | 0.700 | 0.750 | 50.00 | 45.00 | 0.310 | 0.290 | 0.250 | 0.100 |"
    ) in text
    assert "| n (best of 36 by dclip) | 18.00 | – |" in text
    assert "D-CLIP, all: mean over all candidates; the other columns are of the best of 540 by dclip" in text
    first, second = csv.DictReader(io.StringIO(to_csv([section])))
    assert (first["dclip"], first["dclip_unselected"], first["selection"]) == ("0.25", "0.1", "best of 540 by dclip")
    assert second["dclip_unselected"] == ""
    assert first["background_mse"] == "0.0219"


def test_without_selection_nothing_is_said_of_it(task):
    edit_run(task, selection=None)
    (section,) = read_sections(task)
    assert "all" not in to_markdown(section).split("\n\n")[2]
    assert section.rows[0][0] == "m"


def test_tiers_and_selections_do_not_share_a_table(task):
    edit_run(task, tier="quick")
    edit_run(task, "n", tier="quick")
    edit_run(task, tier="paper")
    edit_run(task, tier="quick", selection=SELECTION)
    edit_run(task, tier="quick", selection={**SELECTION, "candidates": 4, "asked": {"trials": 1}})
    edit_run(task)
    sections = read_sections(task)
    assert sorted(len(section.rows) for section in sections) == [1, 1, 1, 1, 2]
    titles = [section.title.rpartition("protocol pets/1")[2] for section in sections]
    selected = [f", tier quick, best of {count} by dclip" for count in (4, 540)]
    assert sorted(titles) == ["", ", tier paper", ", tier quick", *selected]
    assert {row["tier"] for row in csv.DictReader(io.StringIO(to_csv(sections)))} == {"", "quick", "paper"}


def test_tables_of_the_same_images_have_pictures_of_their_own(task):
    edit_run(task, tier="quick")
    edit_run(task, "n", tier="paper")
    write_tables(task)
    assert [section.picture for section in read_sections(task)] == ["grid-d1.png", "grid-d1-2.png"]
    for picture in ("grid-d1.png", "grid-d1-2.png"):
        assert (task / picture).exists()
        assert f"({picture})" in (task / "table.md").read_text()


def test_missing_tuples_are_told(task):
    names = [f"./data/{i}.png" for i in (0, 0, 1, 2, 3, 4, 5)]
    rewrite(edit_run(task), of=9, missing=names)
    (section,) = read_sections(task)
    assert section.title == "t: 2 of 9 tuples of photos, protocol pets/1"
    told = "7 of 9 tuples are missing, because their images are not here: "
    assert told + "./data/0.png, ./data/1.png, ./data/2.png, ./data/3.png, ./data/4.png, …." in section.warnings
    (row,) = csv.DictReader(io.StringIO(to_csv([section])))
    assert (row["n"], row["of"], row["missing"]) == ("2", "9", "7")


def test_a_random_clip_is_told(task):
    folder = edit_run(task)
    metrics = json.loads((folder / "metrics.json").read_text())
    for key in ("clip", "dclip"):
        metrics["metrics"][key]["protocol"] = f"{key}/RANDOM-ViT/x"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert "RANDOM WEIGHTS (CLIP)" in to_markdown(read_sections(task)[0])


@pytest.mark.parametrize("spoil", [{"tier": "quick"}, {"missing": ["x.png"], "of": 3}], ids=["tier", "missing"])
def test_no_difference_to_a_paper_for_another_tier_or_fewer_tuples(task, spoil):
    folder = make_run(task, "m", name="egsde/1", record={"embedded": False, **({"tier": "paper"} | spoil)})
    rewrite(folder, **spoil)
    (task / "paper.json").write_text(json.dumps(PAPER))
    text = to_markdown(read_sections(task)[0])
    assert "18.50 ±0.25 p*" in text
    assert "Δ" not in text.split("\n\n")[2]


def test_the_picture_shows_the_target_texts(task):
    edit_run(task)
    write_tables(task)
    with Image.open(task / "grid-d1.png") as image:
        assert image.height == LINE + 2 * (TILE + GAP) + GAP
        head = image.convert("L").crop((LABEL, 0, image.width, LINE))
        assert head.getextrema()[0] < 100


LONG = (
    "a photograph of a Donaudampfschifffahrtsgesellschaftskapitän with a very large umbrella, standing on the pier in "
    "the evening, gjpqy"
)


def test_captions_are_wrapped_and_not_cut(tmp_path):
    for stem in "abc":
        Image.new("RGB", (4, 4), "red").save(tmp_path / f"{stem}.png")
    page = draw_grid([("x", tmp_path)], captions={"a": "short", "b": LONG})
    font = ImageFont.load_default(size=17)
    lines = wrap(LONG, font, TILE)
    assert "".join(lines).replace(" ", "") == LONG.replace(" ", "")
    assert all(font.getlength(line) <= TILE for line in lines)
    assert page.height == len(lines) * LINE + TILE + 2 * GAP
    ink = np.array(page.convert("L").crop((0, 0, page.width, len(lines) * LINE))) < 128
    left, own = LABEL + TILE + GAP, ink[:, LABEL + TILE + GAP : LABEL + 2 * TILE + GAP]
    assert own[: len(lines) * LINE].any(axis=1).reshape(len(lines), LINE).any(axis=1).all()
    assert not own[0].any()
    assert not ink[:, left - GAP + 1 : left - 1].any()  # the gaps between columns stay free
    assert not ink[:, left + TILE + 1 :].any()
    assert not ink[:-LINE, LABEL : left - GAP].any()  # a short caption stands right above its picture
    assert page.getpixel((LABEL + 9, page.height - GAP - 9)) == (255, 0, 0)


def spread(folder, psnr):
    """Give a run of two images the same PSNR on both, and say which direction is better."""
    (folder / "per_image.csv").write_text(f"id,psnr\na,{psnr}\nb,{psnr}\n")
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["metrics"]["psnr"] |= {"value": psnr, "higher_is_better": True}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_the_best_is_bold_and_equals_are_marked(task):
    for method, psnr in (("m", 18.0), ("n", 18.0), ("o", 17.0)):
        spread(make_run(task, method), psnr)
    text = to_markdown(read_sections(task)[0])
    assert "| m | 20.00 | 4.00 | **18.00 ±0.50** |" in text
    assert "| n | 20.00 | 4.00 | ≈ 18.00 ±0.50 |" in text
    assert "| o | 20.00 | 4.00 | 17.00 ±0.50 |" in text
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(to_rich(read_sections(task)[0], 200))
    assert "≈ not distinguishable from the best" in console.export_text()


def test_seeds_are_one_row_and_several_lines(task):
    for seed, fid in ((1, 20.0), (2, 24.0), (3, 25.0)):
        folder = make_run(task, "m", fid=fid)
        run = json.loads((folder / "run.json").read_text())
        run["identity"]["seed"] = seed
        (folder / "run.json").write_text(json.dumps(run))
    (section,) = read_sections(task)
    assert [label for label, _ in section.rows] == ["m (3 seeds)"]
    assert "| 23.00 ±2.65 |" in to_markdown(section)
    assert "standard deviation over seeds" in to_markdown(section)
    lines = list(csv.DictReader(io.StringIO(to_csv([section]))))
    assert [(line["seed"], line["fid"]) for line in lines] == [("1", "20.0"), ("2", "24.0"), ("3", "25.0")]


def test_claims_are_judged(task):
    for method, psnr in (("m", 18.0), ("n", 17.0)):
        spread(make_run(task, method), psnr)
    claims = [{"text": f"{a} over {b}", "method": a, "than": b, "better": ["psnr"]} for a, b in ("mn", "nm", "mo")]
    (task / "claims.json").write_text(json.dumps(claims))
    text = to_markdown(read_sections(task)[0])
    assert "holds: m over n (probability 1.000)" in text
    assert "fails: n over m (probability 0.000)" in text
    assert "undecided: m over o (no such runs or numbers)" in text


def test_settings_are_sorted_as_numbers(task):
    for t0 in (100, 20, 3):
        make_run(task, "m", t0=t0)
    assert [label for label, _ in read_sections(task)[0].rows] == ["m (t0=3)", "m (t0=20)", "m (t0=100)"]


def test_equal_titles_are_told_apart_by_their_images(task):
    make_run(task, "m")
    make_run(task, "m", data="d2")
    assert sorted(section.title.rpartition(" ")[2] for section in read_sections(task)) == ["d1)", "d2)"]


def test_the_command_writes_a_task(task, capsys):
    make_run(task, "m")
    make_run(task, "slow", status="running", record={"start": "2026-01-01T00:00:00+00:00"})
    main([str(task)])
    told = capsys.readouterr().out
    assert "20.00" in told
    assert "running, 2 of 2 images, since 2026-01-01" in told
    table, _, unfinished = (task / "table.md").read_text().partition("## Not finished")
    assert "slow" not in table
    assert "slow" in unfinished
    for name in ("table.md", "table.csv", "table.tex", "report.html"):
        assert (task / name).stat().st_size > 100


def test_a_failed_run_is_a_hole_with_its_reason(task):
    make_run(task, "m")
    make_run(task, "n", status="failed", record={"start": "2026-01-01T00:00:00+00:00", "error": "no <memory>"})
    write_tables(task)
    assert "failed after 2 of 2 images: no <memory>" in (task / "table.md").read_text()
    page = (task / "report.html").read_text()
    assert "failed after 2 of 2 images: no &lt;memory&gt;" in page
    assert "<memory>" not in page
    assert len(list(csv.DictReader((task / "table.csv").open()))) == 1


def test_the_command_takes_some_runs(task, tmp_path, capsys):
    one, two, other = make_run(task, "m"), make_run(task, "n"), make_run(task, "m", protocol="fid/y")
    main([str(one), str(two), "--output", str(tmp_path / "out")])
    assert [row["method"] for row in csv.DictReader((tmp_path / "out" / "table.csv").open())] == ["m", "n"]
    stranger = make_run(tmp_path / "out", "m")
    capsys.readouterr()
    for arguments, told in {
        (one, other): "do not fit into one table",
        (one, stranger): "runs of different tasks (out, t)",
        (one, task): "is no folder of a run",
        (tmp_path / "nothing",): "is no folder of a run",
        (one, two): "give --output DIR",
    }.items():
        more = [] if told.startswith("give") else ["--output", str(tmp_path / "more")]
        with pytest.raises(SystemExit) as stopped:
            main([*map(str, arguments), *more])
        captured = capsys.readouterr()
        assert stopped.value.code == 2
        assert told in captured.err
        assert captured.err.count("\n") == 1
