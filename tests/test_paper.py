"""Published numbers beside ours."""

import json
from pathlib import Path

import pytest
import yaml

from eval.report.sections import read_task
from eval.report.tables import to_markdown

from .finished_run import metric, rewrite, write_run, write_scores

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


def table(task, name="egsde/1", about=None, method="m", paper=PAPER, **record):
    folder = write_run(task, method, **{"synthetic": False, **record})
    rewrite(folder / "run.json", lambda run: run["data"].update({"dataset": "set", **(about or {})}))
    values = {"fid": metric("fid", 20.0), "kid": metric("kid", 0.004), "psnr": metric("psnr", 18.0, [17.5, 18.5])}
    write_scores(folder, values, protocol=name)
    (task / "paper.json").write_text(json.dumps(paper))
    return to_markdown(read_task(task)[0][0])


def test_a_difference_is_shown_where_protocols_agree(tmp_path):
    text = table(tmp_path)
    assert "| method | FID ↓ | paper FID | Δ FID | KID×10³ ↓ | paper KID×10³ | PSNR dB ↑ | forwards/image" in text
    assert "| m | 20.00 | 18.50 ±0.25 p | +1.50 | 4.00 | 5.00 s* | 18.00 ±0.50 | 50 |" in text
    assert "p: in the paper itself" in text
    assert "s: re-tabulated" in text
    assert "published under another protocol (unknown)" in text
    assert "S1: a table" in text
    assert "m, KID×10³ ↓: perhaps computed anew" in text


@pytest.mark.parametrize(
    "change",
    [
        {"about": {"dataset": None}},
        {"about": {"missing": ["x.png"], "of": 4}},
        {"published_settings": False},
        {"tier": "quick"},
        {"name": "cyclediffusion/1"},
    ],
    ids=["other images", "fewer images", "other settings", "another tier", "another protocol"],
)
def test_no_difference_where_something_else_was_done(change, tmp_path):
    text = table(tmp_path, **change)
    assert "| 18.50 ±0.25 p* |" in text
    assert "Δ" not in text.split("\n\n")[2]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [({"random_weights": ["target"]}, "RANDOM WEIGHTS"), ({"synthetic": True}, "Pets, a synthetic benchmark")],
    ids=["random", "synthetic"],
)
def test_random_and_synthetic_numbers_never_stand_beside_a_papers(record, sentence, tmp_path):
    text = table(tmp_path, **record)
    assert "18.50" not in text
    assert sentence in text


# What conf/experiment quotes


def published(experiment):
    path = Path(__file__).parents[1] / "conf" / "experiment" / f"{experiment}.yaml"
    return yaml.safe_load(path.read_text())["paper"]


@pytest.mark.parametrize(("experiment", "shown"), [("cat2dog", "65.82 p"), ("wild2dog", "59.75 ±0.62 p")])
def test_egsde_beside_what_its_authors_published(experiment, shown, tmp_path):
    """The abstract of an earlier version of EGSDE (arXiv 2207.06635): FID 65.82 and 59.75."""
    text = table(tmp_path, method="egsde", paper=published(experiment))
    assert f"| egsde | 20.00 | {shown} |" in text
    assert "an earlier version of EGSDE's abstract" in text


def test_a_rerun_of_fewer_steps_is_not_shown_as_egsde(tmp_path):
    """CycleDiff's Table I calls it EGSDE: FID 70.16, SSIM 0.411, KID 0.01982; and 45.12 for male2female."""
    values = [entry["value"] for task in ("cat2dog", "male2female") for entry in published(task)["values"]]
    assert not {70.16, 0.411, 0.01982, 45.12} & set(values)
    assert "paper KID" not in table(tmp_path, method="egsde", paper=published("cat2dog"))


@pytest.mark.parametrize("experiment", ["cat2dog", "wild2dog", "male2female"])
def test_every_number_has_a_source_that_is_explained(experiment):
    paper = published(experiment)
    assert {entry["source"] for entry in paper["values"]} <= paper["sources"].keys()
    keys = [(entry["method"], entry["metric"]) for entry in paper["values"]]
    assert len(keys) == len(set(keys))
