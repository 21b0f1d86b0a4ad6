"""Which published numbers count as reproduced: both sides of the tolerance, and each reason why there is no verdict."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval.report.reproduction import tolerance_of
from eval.report.sections import read_task
from eval.report.tables import to_csv, to_markdown, to_rich, write_page

from .finished_run import metric, rewrite, write_run, write_scores

ROOT = Path(__file__).parents[1]
STD = {
    "method": "m",
    "metric": "fid",
    "value": 20.0,
    "std": 0.5,
    "protocol": "egsde",
    "verification": "primary",
    "source": "S",
}
PART = {"method": "m", "metric": "psnr", "value": 18.0, "protocol": "egsde", "verification": "primary", "source": "S"}
RULE = {"stds": 2, "relative": {"psnr": 0.01}}


def run(task, seed=1, fid=20.0, psnr=18.0, *, protocol="egsde/1", data=None, stated=None, **record):
    folder = write_run(task, "m", **{"synthetic": False, "seed": seed, **record})
    rewrite(folder / "run.json", lambda run: run["data"].update({"dataset": "set", **(data or {})}))
    write_scores(
        folder, {"fid": metric("fid", fid), "psnr": metric("psnr", psnr, [psnr - 1, psnr + 1])}, protocol=protocol
    )
    paper = {"sources": {"S": "a table"}, "values": [STD, PART], "tolerance": RULE}
    (folder / "config.yaml").write_text(yaml.safe_dump({"paper": stated if stated is not None else paper}))
    (task / "paper.json").write_text(json.dumps(paper))
    return folder


def verdicts(task):
    (section,) = read_task(task)[0]
    return {
        one.key: (one.verdict, *(reason.partition(":")[0] for reason in one.reasons)) for one in section.reproductions
    }


@pytest.mark.parametrize(
    ("fid", "psnr", "expected"),
    [
        ((20.9, 20.9, 21.1), (18.1, 18.2, 18.2), ("reproduced", "reproduced")),  # means 20.967, 18.167
        ((21.0, 21.0, 21.1), (18.1, 18.2, 18.3), ("not reproduced", "not reproduced")),  # 21.033, 18.2 > 18.18
        ((18.9, 19.0, 19.0), (17.9, 17.9, 17.8), ("not reproduced", "reproduced")),  # 18.967, 17.867 > 17.82
    ],
)  # fmt: skip
def test_both_sides_of_the_tolerance(fid, psnr, expected, tmp_path):
    """±1.0 is twice the published deviation, ±0.18 a hundredth of the value; means over seeds are compared."""
    for seed in range(3):
        run(tmp_path, seed, fid[seed], psnr[seed])
    found = verdicts(tmp_path)
    assert (found["fid"], found["psnr"]) == ((expected[0],), (expected[1],))


DIFFERENT = {
    "protocol": {"protocol": "cyclediffusion/1"},
    "data set": {"data": {"dataset": None}},
    "count": {"data": {"missing": ["x.png"], "of": 4}},
    "settings": {"published_settings": False},
    "tier": {"tier": "quick"},
    "tolerance": {"stated": {"sources": {}, "values": [STD, PART]}},  # the run's own settings had none
}


@pytest.mark.parametrize("reason", DIFFERENT)
def test_each_reason(reason, tmp_path):
    for seed in range(3):
        run(tmp_path, seed, **DIFFERENT[reason])
    assert verdicts(tmp_path) == dict.fromkeys(("fid", "psnr"), ("not comparable", reason))


def test_too_few_seeds(tmp_path):
    run(tmp_path, 1)
    run(tmp_path, 2)
    assert verdicts(tmp_path)["fid"] == ("not comparable", "seeds")
    text = to_markdown(read_task(tmp_path)[0][0])
    assert "- not comparable: m (2 seeds), FID and PSNR dB (seeds: 2 of 3)" in text
    run(tmp_path, 3)
    assert verdicts(tmp_path)["fid"] == ("reproduced",)


def test_a_method_without_noise_takes_one_seed(tmp_path):
    stated = {"values": [STD, PART], "tolerance": {**RULE, "seeds": 1}}
    run(tmp_path, 1, stated=stated)
    assert verdicts(tmp_path) == {"fid": ("reproduced",), "psnr": ("reproduced",)}


def test_a_tolerance_of_after_the_run_does_not_count(tmp_path):
    """paper.json is of today; what a run knew is in its config.yaml."""
    for seed in range(3):
        run(tmp_path, seed, 21.5)
    wide = {"sources": {"S": "a table"}, "values": [{**STD, "tolerance": 5.0}], "tolerance": {"stds": 20}}
    (tmp_path / "paper.json").write_text(json.dumps(wide))
    assert verdicts(tmp_path)["fid"] == ("not reproduced",)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({**STD, "tolerance": 3.0}, 3.0),
        (STD, 1.0),
        ({**PART, "std": 0.0}, 0.18),  # a deviation that is rounded to 0 says nothing
        ({**STD, "std": None}, None),
    ],
)
def test_the_rule(value, expected):
    found = tolerance_of(value, RULE)
    assert found is None if expected is None else found == pytest.approx(expected)


def test_where_it_is_shown(tmp_path):
    for seed in range(3):
        run(tmp_path, seed, 20.5, 19.0)
    sections = read_task(tmp_path)[0]
    lines = [
        "reproduced: m (3 seeds), FID: 20.50 against 20.00, tolerance ±1.00, 3 seeds",
        "not reproduced: m (3 seeds), PSNR dB: 19.00 against 18.00, tolerance ±0.18, 3 seeds",
    ]
    assert all(f"- {line}" in to_markdown(sections[0]) for line in lines)
    assert all(line in str(to_rich(sections[0], 150).caption) for line in lines)
    rows = list(csv.DictReader(io.StringIO(to_csv(sections))))
    assert [(row["fid_reproduced"], row["psnr_reproduced"]) for row in rows] == [("yes", "no")] * 3
    write_page(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert '<span class="verdict holds">reproduced</span><span>m (3 seeds), FID: 20.50 against' in page
    assert '<span class="verdict fails">not reproduced</span><span>m (3 seeds), PSNR dB: 19.00' in page


@pytest.mark.parametrize("record", [{"random_weights": ["target"]}, {"synthetic": True}], ids=str)
def test_random_and_synthetic_runs_get_no_verdict(record, tmp_path):
    run(tmp_path, **record)
    assert verdicts(tmp_path) == {}


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_published_number_has_a_tolerance(path):
    paper: Any = yaml.safe_load(path.read_text()).get("paper") or {"values": []}
    for value in paper["values"]:
        assert (tolerance_of(value, paper["tolerance"]) or 0) > 0, value


def test_parts_are_twice_the_largest_published_deviation():
    for name in ("cat2dog", "wild2dog"):
        paper = yaml.safe_load((ROOT / "conf" / "experiment" / f"{name}.yaml").read_text())["paper"]
        for key, part in paper["tolerance"]["relative"].items():
            known = [v["std"] / v["value"] for v in paper["values"] if v["metric"] == key and v.get("std")]
            assert part == pytest.approx(2 * max(known), rel=0.03)
