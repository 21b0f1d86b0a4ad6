import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from eval.report.comparison import Verdict
from eval.report.page import write_html
from eval.report.sections import read_task

from .finished_run import metric, rewrite, scores_of, write_csv, write_run, write_scores

IDS = tuple(f"cat{k}" for k in range(5))
VOID = {"meta", "link", "img", "input", "br", "hr"}


def make_run(
    task, method, *, seed=0, ids=IDS, side=16, done=True, captions=None, run=None, data="d1", curves=None, **settings
):
    """A run whose numbers follow from the seed; its images are of both cats and dogs."""
    generator = np.random.default_rng(seed)
    record = {"revision": "abc123", "dirty": True, "versions": {"torch": "9.9"}, **(run or {})}
    if not done:
        record |= {"status": "running"}
    costs = {"forwards_per_image": 50 + seed, "seconds_per_image": 0.5, "images_per_second": 2.0}
    folder = write_run(task, method, ids=ids, side=side, data=data, settings=settings, **{"costs": costs, **record})
    (folder / "config.yaml").write_text(f"method:\n  name: {method}\n")
    if captions:
        rows = [[image, *captions[image], "", ""] for image in ids]
        write_csv(task / "data" / f"cats-{data}" / "edits.csv", [["id", "source", "target", "category", "mask"], *rows])
    if done:
        psnr, ssim = generator.normal(18, 3, len(ids)), generator.uniform(0, 1, len(ids))
        lines = zip(ids, psnr, ssim, [""] * len(ids), strict=True)
        metrics = {
            "fid": metric("fid", 20.0 - seed),
            "kid": metric("kid", 0.004 + seed / 1000, [0.003, 0.009]),
            "psnr": metric("psnr", psnr.mean(), [psnr.mean() - 1, psnr.mean() + 1]),
            "ssim": metric("ssim", ssim.mean()),
        }
        write_scores(folder, metrics, per_image=[["id", "psnr", "ssim", "seconds"], *lines], curves=curves)
    return folder


def write(task, change=None):
    sections, running = read_task(task)
    if change:
        change(sections)
    write_html(task, sections, running, task / "report.html")
    return (task / "report.html").read_text(encoding="utf-8")


class Tree(HTMLParser):
    """A real parser's view of the page: every tag is closed in turn, texts by the tag around them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def data(self, name):
        scripts = [attributes.get("id") for tag, attributes in self.tags if tag == "script"]
        return json.loads([text for tag, text in self.texts if tag == "script"][scripts.index(name)])


@pytest.fixture
def task(tmp_path):
    return tmp_path / "t"


def test_the_page_is_one_file_that_asks_for_nothing(task):
    make_run(task, "m")
    make_run(task, "n", seed=1)
    text = write(task)
    tree = Tree(text)
    assert "http:" not in text
    assert "https:" not in text
    for tag, attributes in tree.tags:
        assert "src" not in attributes, tag
        assert attributes.get("href", "#").startswith(("#", "data:"))
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert not list(task.glob("*.tmp"))


def test_the_policy_allows_the_pages_own_script_and_style_only(task):
    make_run(task, "m")
    text = write(task)
    (policy,) = [a["content"] for t, a in Tree(text).tags if t == "meta" and "http-equiv" in a]
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_table_shows_numbers_marks_and_protocols(task):
    make_run(task, "m")
    make_run(task, "n", seed=1)

    def mark(sections):
        sections[0].rows[0].marks = {"fid": "tied"}
        sections[0].rows[1].marks = {"fid": "best"}

    text = write(task, mark)
    assert re.search(r'<td data-value="20.0" class="tied">20.00<abbr title="tied with [^"]*">†</abbr></td>', text)
    assert '<td data-value="19.0" class="best">19.00</td>' in text
    assert '<td data-value="0.004">4.00 <span class="rest">±3.00</span></td>' in text
    assert 'title="kid/x">KID×10³ ↓</button>' in text
    assert "<li>KID×10³ ↓: kid/x</li>" in text
    assert "†: tied with the best of the column (paired bootstrap, 95 %)." in text
    assert "Pets, a synthetic benchmark" in text
    assert "†" not in write(task)


def test_published_numbers_sort_by_their_number(task):
    paper = [{"method": "m", "metric": "fid", "value": 18.5, "std": 0.25, "verification": "primary", "source": "S"}]
    make_run(task, "m", run={"synthetic": False})
    (task / "paper.json").write_text(json.dumps({"sources": {"S": "a table"}, "values": paper}))
    assert '<td data-value="18.50">18.50 <span class="rest">±0.25 p*</span></td>' in write(task)


def test_claims_are_shown_with_their_support(task):
    make_run(task, "m")
    claims = [Verdict("a < b", "holds", 0.9984), Verdict("c", "undecided", None)]
    text = write(task, lambda sections: sections[0].claims.extend(claims))
    assert '<span class="verdict holds">holds</span><span>a &lt; b <span class="support">' in text
    assert "bootstrap support 99.8\u00a0%" in text
    assert "a run or a number is missing" in text
    assert "Claims" not in write(task)


def test_a_running_run_has_no_numbers(task):
    make_run(task, "m", done=False)
    tree = Tree(write(task))
    texts = [text for _, text in tree.texts]
    assert "running, 5 of 5 images; begun" in texts
    assert "2026-01-02 03:04" in texts
    assert "No run of this task is finished yet." in texts
    assert "table" not in [tag for tag, _ in tree.tags]


def test_untrusted_input_stays_text(task):
    evil = "<img src=x onerror=alert(1)></script><!--'\"&{{ 7*7 }}"
    make_run(task, evil, captions={image: [evil, "é 猫"] for image in IDS}, run={"command": f"run {evil}"})
    tree = Tree(write(task))
    assert not [tag for tag, attributes in tree.tags if tag == "img" and "onerror" in attributes]
    assert ("code", f"run {evil}") in tree.texts
    gallery = tree.data("gallery-1")
    assert gallery["captions"]["cat0"] == [evil, "é 猫"]
    assert gallery["columns"][1]["label"] == evil


def test_a_command_with_a_name_that_is_no_text(task):
    """Bytes of a file's name that are not UTF-8 come as half characters, which no file in UTF-8 can hold."""
    make_run(task, "m", run={"command": "run data.source=b\udcff"})
    assert ("code", r"run data.source=b\udcff") in Tree(write(task)).texts


def test_the_gallery_has_the_numbers_and_pictures_of_the_files(task):
    folder = make_run(task, "m")
    make_run(task, "n", seed=1)
    tree = Tree(write(task))
    gallery = tree.data("gallery-1")
    rows = list(csv.DictReader((scores_of(folder) / "per_image.csv").open()))
    assert gallery["ids"] == [row["id"] for row in rows]
    assert gallery["values"]["psnr"][0] == pytest.approx([float(row["psnr"]) for row in rows], rel=1e-5)
    assert [metric["key"] for metric in gallery["metrics"]] == ["psnr", "ssim"]
    assert [column["label"] for column in gallery["columns"]] == ["source", "m", "n", "ground truth"]
    assert [column["kind"] for column in gallery["columns"]] == ["source", "result", "result", "ground-truth"]
    for column in gallery["columns"]:
        made = tree.data(f"thumbnails-{column['thumbnails']}")
        for image in gallery["ids"]:
            with (
                Image.open(io.BytesIO(base64.b64decode(made[image]))) as small,
                Image.open(task / column["folder"] / f"{image}.png") as full,
            ):
                assert np.array_equal(small.convert("RGB"), full)


def test_a_page_elsewhere_finds_the_pictures(task, tmp_path):
    make_run(task, "m")
    elsewhere = tmp_path / "out"
    elsewhere.mkdir()
    write_html(task, read_task(task)[0], [], elsewhere / "page.html")
    for column in Tree((elsewhere / "page.html").read_text(encoding="utf-8")).data("gallery-1")["columns"]:
        assert (elsewhere / column["folder"] / "cat0.png").exists()


def test_numbers_that_are_not_finite_do_not_break_the_page(task):
    folder = make_run(task, "m")
    rows = [["id", "psnr"], ["cat0", "inf"], ["cat1", "nan"], ["cat2", "1.5"], ["cat3", "-inf"], ["cat4", ""]]
    write_csv(scores_of(folder) / "per_image.csv", rows)
    infinite = {"value": float("inf"), "ci95": [1.0, float("inf")]}
    rewrite(scores_of(folder) / "metrics.json", lambda content: content["metrics"]["psnr"].update(infinite))
    text = write(task)
    assert Tree(text).data("gallery-1")["values"]["psnr"] == [["Infinity", None, 1.5, "-Infinity", None]]
    assert 'data-value="Infinity"' in text
    assert "No run has both numbers." in text


def test_provenance_names_every_run_of_a_row(task):
    first, second = make_run(task, "m", run={"command": "python run.py seed=1"}), make_run(task, "m", seed=1)
    identity = {"method": {"name": "m"}, "task": {"name": "t"}, "seed": 2}
    rewrite(second / "run.json", lambda run: run.update(seed=2, identity=identity))
    tree = Tree(write(task))
    for shown in (("code", "python run.py seed=1"), ("code", first.name), ("code", second.name)):
        assert shown in tree.texts
    assert ("dd", "abc123 with uncommitted changes") in tree.texts
    assert ("dt", "weights: source") in tree.texts
    assert tree.texts.count(("pre", "method:\n  name: m")) == 2
    assert any("standard deviation over seeds" in text for _, text in tree.texts)


def curve(*points):
    return {"energy": {"title": "Energy & more", "x": {"header": "step"}, "y": {"header": "J"}, "points": points}}


def test_curves_of_an_analysis_are_a_chart(task):
    """A line for each run, and no charts or images where there are none."""
    for method, points in (("m", [[0, 1], [1, 3]]), ("n", [[0, 2], [1, float("nan")], [2, 4]])):
        folder = write_run(task, method, images=False, study="similarity", costs={})
        write_scores(folder, {"psnr": metric("psnr", 18.0)}, curves=curve(*points))
    text = write(task)
    tree = Tree(text)
    assert ("figcaption", "Energy & more") in tree.texts
    (svg,) = re.findall("<svg viewBox.*?</svg>", re.sub("<svg viewBox=.-8.*?</svg>", "", text), re.DOTALL)
    assert svg.count('class="curve"') == 2
    assert [text for tag, text in tree.texts if tag == "span" and text in "mn"][-2:] == ["m", "n"]  # the legend
    anchors = {attributes["id"] for _, attributes in tree.tags if "id" in attributes}
    assert "s1-curves" in anchors
    assert not anchors & {"s1-charts", "s1-gallery", "gallery-1"}
    links = {attributes["href"] for tag, attributes in tree.tags if tag == "a"}
    assert {link[1:] for link in links} <= anchors


def test_sections_have_anchors(task):
    make_run(task, "m")
    make_run(task, "m", data="d2")
    tree = Tree(write(task))
    anchors = {attributes["id"] for _, attributes in tree.tags if "id" in attributes}
    links = {attributes["href"] for tag, attributes in tree.tags if tag == "a"}
    assert {"#s1", "#s2"} <= links
    assert {link[1:] for link in links} <= anchors
    ids = [attributes["id"] for _, attributes in tree.tags if "id" in attributes]
    assert len(ids) == len(anchors)


def test_each_choice_of_axes_has_a_drawing(task):
    make_run(task, "m", eta=1)
    make_run(task, "m", seed=1, eta=2)
    make_run(task, "n", seed=2)
    tree = Tree(write(task))
    charts = [attributes for tag, attributes in tree.tags if tag == "div" and attributes.get("class") == "chart"]
    assert [(c.get("data-y"), c.get("data-x")) for c in charts if "data-x" in c] == [
        ("fid", "psnr"), ("fid", "ssim"), ("kid", "psnr"), ("kid", "ssim")
    ]  # fmt: skip
    assert [c["data-y"] for c in charts if "data-x" not in c] == ["fid", "kid", "psnr", "ssim"]
    assert ["hidden" in c for c in charts] == [False, True, True, True] * 2
    assert any(re.fullmatch(r"\d+ %", text) for tag, text in tree.texts if tag == "span")
