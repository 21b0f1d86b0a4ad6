"""Names of rows, runs of several seeds, and selection among candidates."""

import csv
import io

import pytest

from eval.report.sections import read_task
from eval.report.tables import to_csv, to_markdown, write_page, write_tables

from .finished_run import metric, rewrite, scores_of, write_run, write_scores

SELECTION = {"candidates": 540, "metric": "dclip", "asked": {"trials": 15}}


@pytest.fixture
def task(tmp_path):
    (tmp_path / "t").mkdir()
    return tmp_path / "t"


def make_run(task, method, psnr=18.0, **more):
    folder = write_run(task, method, **more)
    write_scores(folder, {"psnr": metric("psnr", psnr)})
    return folder


def with_identity(task, method, identity):
    folder = make_run(task, method)
    rewrite(folder / "run.json", lambda run: run["identity"].update(identity))


def labels(task):
    (section,) = read_task(task)[0]
    return [row.label for row in section.rows]


def test_runs_of_one_method_are_named_by_what_differs(task):
    make_run(task, "m", settings={"eta": 0.1, "T": 10})
    make_run(task, "m", settings={"eta": 1.0, "T": 10})
    make_run(task, "n", settings={"eta": 1.0})
    assert labels(task) == ["m (eta=0.1)", "m (eta=1.0)", "n"]


def test_settings_are_sorted_as_numbers(task):
    for t0 in (100, 20, 3):
        make_run(task, "m", settings={"t0": t0})
    assert labels(task) == ["m (t0=3)", "m (t0=20)", "m (t0=100)"]


def test_a_value_is_named_once(task):
    """As Hydra's interpolation repeats it: a precision under three keys, and a method's setting under the task's."""
    for dtype, T in (("float32", 10), ("float16", 20)):
        models = {"source_model": {"dtype": dtype}, "target_model": {"dtype": dtype}}
        task_leaves = {"name": "t", **models, "settings": {"m": {"T": T, "steps": T}}}
        with_identity(task, "m", {"method": {"name": "m", "T": T}, "task": task_leaves, "dtype": dtype})
    assert labels(task) == ["m (T=10, dtype=float32)", "m (T=20, dtype=float16)"]


def test_two_settings_of_one_name_have_longer_names(task):
    for source, target in ((1, 1), (1, 2), (2, 1)):
        with_identity(task, "m", {"encoder": {"guidance": source}, "decoder": {"guidance": target}})
    assert labels(task) == [
        "m (encoder.guidance=1, decoder.guidance=1)",
        "m (encoder.guidance=1, decoder.guidance=2)",
        "m (encoder.guidance=2, decoder.guidance=1)",
    ]


def test_weights_and_data_are_named_where_nothing_else_differs(task):
    for eta, weights in ((0.1, "a" * 64), (0.1, "b" * 64)):
        with_identity(task, "m", {"method": {"name": "m", "eta": eta}, "weights": {"source": weights}})
    assert labels(task) == ["m (source=aaaaaaaa)", "m (source=bbbbbbbb)"]


def test_weights_and_data_are_not_named_beside_another_difference(task):
    for eta, weights in ((0.1, "a" * 64), (0.2, "b" * 64)):
        identity = {"method": {"name": "m", "eta": eta}, "weights": {"source": weights}, "data": {"n": eta}}
        with_identity(task, "m", identity)
    assert labels(task) == ["m (eta=0.1)", "m (eta=0.2)"]


def test_seeds_are_one_row_and_several_lines(task):
    for seed, psnr in ((1, 20.0), (2, 24.0), (3, 25.0)):
        make_run(task, "m", psnr, seed=seed)
    make_run(task, "m", 9.0, seed=1, settings={"eta": 0.5})
    (section,) = read_task(task)[0]
    text = to_markdown(section)
    assert [row.label for row in section.rows] == ["m (3 seeds)", "m (eta=0.5)"]
    assert "| **23.00 ±2.65** |" in text  # the deviation of 20, 24, 25 is √7
    assert "standard deviation over seeds" in text
    lines = list(csv.DictReader(io.StringIO(to_csv([section]))))
    assert [(line["seed"], line["psnr"]) for line in lines] == [
        ("1", "20.0"),
        ("2", "24.0"),
        ("3", "25.0"),
        ("1", "9.0"),
    ]


def test_scores_of_one_run_are_no_seeds(task):
    folder = make_run(task, "m")
    scores = write_scores(folder, {"psnr": metric("psnr", 19.0)})
    rewrite(scores / "metrics.json", lambda content: content["identity"].update(clip="x"))
    (section,) = read_task(task)[0]
    assert [row.seeds for row in section.rows] == [[1], [1]]
    assert len({row.label for row in section.rows}) == 2


# zero-shot editing


def edit_run(task, method="m", unselected=None, **record):
    """A run of an editing task."""
    folder = write_run(task, method, study="edit", **record)
    values = {"psnr": 18.0, "ssim": 0.7, "l2": 50.0, "clip": 0.31, "dclip": 0.25, "edit_error": 0.1, "kept_error": 0.05}
    values |= {"background_psnr": 25.0, "background_ssim": 0.9, "background_mse": 0.0219}
    metrics = {key: metric(key, value) for key, value in values.items()}
    for key, value in (unselected or {}).items():
        metrics[key]["unselected"] = value
    write_scores(folder, metrics)
    return folder


def test_scores_of_edits_have_columns(task):
    edit_run(task)
    (section,) = read_task(task)[0]
    text = to_markdown(section)
    assert (
        "| method | PSNR dB ↑ | SSIM ↑ | L2 ↓ | CLIP ↑ | D-CLIP ↑ | edit error ↓ | error elsewhere ↓ "
        "| background PSNR ↑ | background SSIM ↑ | background MSE×10⁴ ↓ | forwards/image | s/image | images/s |"
    ) in text
    assert "| m | 18.00 | 0.700 | 50.00 | 0.310 | 0.250 | 0.100 | 0.050 | 25.00 | 0.900 | 219.00 | 50 |" in text
    assert "FID" not in text


def test_selected_and_unselected_stand_side_by_side(task):
    means = {"dclip": 0.1, "clip": 0.29, "psnr": 20.5, "ssim": 0.75, "l2": 45.0}
    edit_run(task, selection=SELECTION, unselected=means)
    edit_run(task, "n", selection={**SELECTION, "candidates": 36})
    (section,) = read_task(task)[0]
    text = to_markdown(section).replace("**", "")
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
    (section,) = read_task(task)[0]
    assert "all" not in to_markdown(section).split("\n\n")[2]
    assert section.rows[0].label == "m"


def test_tiers_and_selections_do_not_share_a_table(task):
    edit_run(task, tier="quick")
    edit_run(task, "n", tier="quick")
    edit_run(task, tier="paper")
    edit_run(task, tier="quick", selection=SELECTION)
    edit_run(task, tier="quick", selection={**SELECTION, "candidates": 4, "asked": {"trials": 4}})
    edit_run(task)
    sections, _ = read_task(task)
    assert sorted(len(section.rows) for section in sections) == [1, 1, 1, 1, 2]
    titles = [section.title.rpartition("protocol pets/2")[2] for section in sections]
    selected = [f", tier quick, best of {count} by dclip" for count in (4, 540)]
    assert sorted(titles) == ["", ", tier paper", ", tier quick", *selected]
    assert {row["tier"] for row in csv.DictReader(io.StringIO(to_csv(sections)))} == {"", "quick", "paper"}


def test_where_nothing_is_chosen_methods_may_differ_in_their_candidate(task):
    """Guidance and skip of a lone candidate are settings of the method, and its published ones are its own."""
    for name, guidance in (("m", 3), ("n", 15)):
        asked = {"trials": 1, "grid": {"source_guidance": [1], "skip": [0], "guidance": [guidance]}}
        edit_run(task, name, tier="published", selection={"candidates": 1, "metric": "dclip", "asked": asked})
    (section,) = read_task(task)[0]
    assert [row.label for row in section.rows] == ["m", "n"]


def test_tables_of_the_same_images_have_pictures_of_their_own(task):
    edit_run(task, tier="quick")
    edit_run(task, "n", tier="paper")
    write_tables(task)
    write_page(task)
    assert [section.picture for section in read_task(task)[0]] == ["grid-d1.png", "grid-d1-2.png"]
    for picture in ("grid-d1.png", "grid-d1-2.png"):
        assert (task / picture).exists()
        assert f"({picture})" in (task / "table.md").read_text()


def test_missing_tuples_are_named(task):
    folder = edit_run(task)
    names = [f"./data/{i}.png" for i in (0, 0, 1, 2, 3, 4, 5)]
    rewrite(folder / "run.json", lambda run: run["data"].update(of=9, missing=names))
    text = to_markdown(read_task(task)[0][0])
    assert "3 of 9 tuples of cats" in text
    assert "7 of 9 tuples are missing, because their images are not here: ./data/0.png, ./data/1.png" in text
    assert "./data/4.png, …" in text
    assert scores_of(folder).exists()
