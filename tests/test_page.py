import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from eval.report.charts import COLOURS, HEIGHT, SHAPES, WIDTH, Axis, _Span, draw_chart, ticks
from eval.report.comparison import Verdict
from eval.report.page import write_page
from eval.report.sections import read_running, read_sections
from eval.report.tradeoff import Curve

IDS = tuple(f"cat{k}" for k in range(5))
VOID = {"meta", "link", "img", "input", "br", "hr"}


def picture(seed, side):
    pixels = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def make_run(task, method, *, seed=0, ids=IDS, side=16, data="d1", done=True, captions=None, run=None, **settings):
    """A run with the files that run.py writes; its numbers follow from the seed."""
    task.mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    identity = {"task": "t", "protocol": "pets/1", "method": {"name": method, **settings}, "seed": 1}
    folder = task / f"{re.sub('[^a-z]', '', method)[:20]}-{len(list(task.iterdir()))}"
    (folder / "images").mkdir(parents=True)
    source = task / "data" / f"photos-{data}"
    source.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(ids):
        picture(k, side).save(source / f"{image}.png")
        picture((seed + 1) * 100 + k, side).save(folder / "images" / f"{image}.png")
    if captions:
        with (source / "edits.csv").open("w", newline="") as file:
            lines = [[image, *captions[image], "", ""] for image in ids]
            csv.writer(file).writerows([["id", "source", "target", "category", "mask"], *lines])
    about = {"name": "photos", "digest": data, "n": len(ids), "source": source.name, "counterpart": source.name}
    record = {"identity": identity, "embedded": True, "data": {**about, "dataset": None}, "random_weights": []}
    record |= {"status": "running", "start": "2026-01-02T03:04:05+00:00", "published_settings": True}
    if done:
        record |= {"network_evaluations_per_image": 50 + seed, "seconds_per_image": 0.5, "images_per_second": 2.0}
        record |= {"status": "finished", "revision": "abc123", "dirty": True, "versions": {"torch": "9.9"}}
        psnr, ssim = generator.normal(18, 3, len(ids)), generator.uniform(0, 1, len(ids))
        with (folder / "per_image.csv").open("w", newline="") as file:
            csv.writer(file).writerows(
                [["id", "psnr", "ssim", "seconds"], *zip(ids, psnr, ssim, [""] * len(ids), strict=True)]
            )
        metrics = {
            "fid": {"value": 20.0 - seed, "ci95": None, "protocol": "fid/x"},
            "kid": {"value": 0.004 + seed / 1000, "ci95": [0.003, 0.009], "protocol": "kid/x"},
            "psnr": {"value": psnr.mean(), "ci95": [psnr.mean() - 1, psnr.mean() + 1], "protocol": "psnr/x"},
            "ssim": {"value": ssim.mean(), "ci95": None, "protocol": "ssim/x"},
        }
        (folder / "metrics.json").write_text(json.dumps({"schema": 1, "metrics": metrics}))
    (folder / "config.yaml").write_text(f"method:\n  name: {method}\n")
    (folder / "run.json").write_text(json.dumps({**record, **(run or {})}))
    return folder


def write(task, change=None):
    sections = read_sections(task)
    if change:
        change(sections)
    write_page(task, sections, read_running(task), task / "report.html")
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
        sections[0].rows[0][1]["marks"] = {"fid": "tied"}
        sections[0].rows[1][1]["marks"] = {"fid": "best"}

    text = write(task, mark)
    assert re.search(r'<td data-value="20.0" class="tied">20.00<abbr', text)
    assert '<td data-value="19.0" class="best">19.00</td>' in text
    assert '<td data-value="0.004">4.00 <span class="rest">±3.00</span></td>' in text
    assert 'title="kid/x">KID×10³ ↓</button>' in text
    assert "<li>KID×10³ ↓: kid/x</li>" in text
    assert "cannot be told apart from the best (95 %" in text
    assert "Embedded world" in text
    assert "cannot be told apart" not in write(task)


def test_published_numbers_sort_by_their_number(task):
    paper = [{"method": "m", "metric": "fid", "value": 18.5, "std": 0.25, "verification": "primary", "source": "S"}]
    make_run(task, "m", run={"embedded": False})
    (task / "paper.json").write_text(json.dumps({"sources": {"S": "a table"}, "values": paper}))
    assert '<td data-value="18.50">18.50 <span class="rest">±0.25 p*</span></td>' in write(task)


def test_claims_are_shown_with_their_probability(task):
    make_run(task, "m")
    claims = [Verdict("a < b", "holds", 0.9984), Verdict("c", "undecided", None)]
    text = write(task, lambda sections: sections[0].claims.extend(claims))
    assert '<span class="verdict holds">holds</span><span>a &lt; b</span>' in text
    assert "holds with probability 99.8 %" in text
    assert "a run or a number is missing" in text
    assert "Claims" not in write(task)


def test_a_running_run_has_no_numbers(task):
    make_run(task, "m", done=False)
    tree = Tree(write(task))
    texts = [text for _, text in tree.texts]
    assert "running: 5 of 5 images, since" in texts
    assert "2026-01-02 03:04" in texts
    assert "No run of this task is finished yet." in texts
    assert "table" not in [tag for tag, _ in tree.tags]


def test_what_strangers_wrote_stays_text(task):
    evil = "<img src=x onerror=alert(1)></script><!--'\"&{{ 7*7 }}"
    make_run(task, evil, captions={image: [evil, "é 猫"] for image in IDS}, run={"command": f"run {evil}"})
    tree = Tree(write(task))
    assert not [tag for tag, attributes in tree.tags if tag == "img" and "onerror" in attributes]
    assert ("code", f"run {evil}") in tree.texts
    gallery = tree.data("gallery-1")
    assert gallery["captions"]["cat0"] == [evil, "é 猫"]
    assert gallery["columns"][1]["label"] == evil


def test_the_gallery_has_the_numbers_and_pictures_of_the_files(task):
    folder = make_run(task, "m")
    make_run(task, "n", seed=1)
    tree = Tree(write(task))
    gallery = tree.data("gallery-1")
    rows = list(csv.DictReader((folder / "per_image.csv").open()))
    assert gallery["ids"] == [row["id"] for row in rows]
    assert gallery["values"]["psnr"][0] == pytest.approx([float(row["psnr"]) for row in rows], rel=1e-5)
    assert [metric["key"] for metric in gallery["metrics"]] == ["psnr", "ssim"]
    assert [column["label"] for column in gallery["columns"]] == ["source", "m", "n", "true counterpart"]
    assert gallery["columns"][0]["thumbnails"] == gallery["columns"][3]["thumbnails"]  # one folder, kept once
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
    write_page(task, read_sections(task), [], elsewhere / "page.html")
    for column in Tree((elsewhere / "page.html").read_text(encoding="utf-8")).data("gallery-1")["columns"]:
        assert (elsewhere / column["folder"] / "cat0.png").exists()


def test_numbers_that_are_not_finite_do_not_break_the_page(task):
    folder = make_run(task, "m")
    rows = [["id", "psnr"], ["cat0", "inf"], ["cat1", "nan"], ["cat2", "1.5"], ["cat3", "-inf"], ["cat4", ""]]
    with (folder / "per_image.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["metrics"]["psnr"] = {"value": float("inf"), "ci95": [1.0, float("inf")], "protocol": "psnr/x"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    text = write(task)
    assert Tree(text).data("gallery-1")["values"]["psnr"] == [["Infinity", None, 1.5, "-Infinity", None]]
    assert 'data-value="Infinity"' in text
    assert "No run has both numbers." in text


def test_provenance_names_every_run_of_a_row(task):
    first, second = make_run(task, "m", run={"command": "python run.py seed=1"}), make_run(task, "n", seed=1)

    def merge(sections):
        sections[0].rows[0][1].update(folders=[first.name, second.name], std={"psnr": 0.1})
        del sections[0].rows[1]

    tree = Tree(write(task, merge))
    for told in (("code", "python run.py seed=1"), ("code", first.name), ("code", second.name)):
        assert told in tree.texts
    assert ("dd", "abc123 with uncommitted changes") in tree.texts
    assert ("pre", "method:\n  name: n") in tree.texts
    assert any("standard deviation over seeds" in text for _, text in tree.texts)


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


# charts


@pytest.mark.parametrize("seed", range(40))
def test_ticks_are_round_and_cover_the_axis(seed):
    generator = np.random.default_rng(seed)
    low = float(generator.normal(0, 10 ** generator.uniform(-3, 4)))
    high = low + float(10 ** generator.uniform(-3, 4))
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    steps = np.diff(found)
    assert steps == pytest.approx(steps[0])
    assert low - 1e-6 * steps[0] <= found[0] < low + steps[0]
    assert high - steps[0] < found[-1] <= high + 1e-6 * steps[0]
    assert f"{steps[0]:.6e}"[0] in "125"


def test_ticks_of_a_logarithmic_axis():
    assert ticks(9, 230, log=True) == [10, 20, 50, 100, 200]
    assert ticks(0.5, 20_000, log=True) == [1, 10, 100, 1000, 10_000]


def markers(svg):
    """Positions of the markers in the order drawn, and the text of each tooltip."""
    found = [element for element in ElementTree.fromstring(svg).iter("path") if element.get("class") == "marker"]
    places = [tuple(map(float, re.findall(r"[\d.]+", element.get("transform")))) for element in found]
    return places, [element.findtext("title") for element in found]


def test_a_chart_places_its_points_true_to_scale():
    curve = Curve("m", [(0.0, 1.0), (1.0, 3.0), (4.0, 2.0)], ["m (a)", "m (<b>)", "c"], [((-1, 1), None)] * 3)
    svg = draw_chart([curve], Axis("PSNR dB", True, 2), Axis("KID×10³", False, 1, 1000), {"m": 0})
    places, tooltips = markers(svg)
    (x0, y0), (x1, y1), (x2, y2) = places
    assert (x2 - x0) / (x1 - x0) == pytest.approx(4, abs=0.01)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.5, abs=0.01)
    assert y1 < y0  # larger is higher up
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    texts = {(e.get("text-anchor"), e.text): e for e in ElementTree.fromstring(svg).iter("text")}
    assert float(texts["middle", "1"].get("x")) == x1
    assert float(texts["end", "2000"].get("y")) == pytest.approx(y2 + 4.5, abs=0.1)  # letters are centred on the tick
    assert tooltips[1] == "m (<b>)\nPSNR dB 1.00\nKID×10³ 3000.0"
    assert "better →" in svg
    assert "better ↓" in svg
    bars = [e.get("d") for e in ElementTree.fromstring(svg).iter("path") if e.get("class") == "bar"]
    left, right = (float(part.split()[0]) for part in bars[0][1:].split("L"))
    assert (right - left) / (x1 - x0) == pytest.approx(2, abs=0.01)


def test_a_cost_axis_of_many_decades_is_logarithmic():
    curve = Curve("m", [(10.0, 1.0), (100.0, 2.0), (1000.0, 3.0)], list("abc"), [(None, None)] * 3)
    svg = draw_chart([curve], Axis("evaluations", False, 0), Axis("FID", False, 2), {"m": 3})
    (x0, _), (x1, _), (x2, _) = markers(svg)[0]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert "evaluations, log scale (← better)" in svg


@pytest.mark.parametrize("x_higher", [True, False])
@pytest.mark.parametrize("y_higher", [True, False])
def test_the_front_goes_around_what_is_dominated(x_higher, y_higher):
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)] if x_higher != y_higher else [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    curve = Curve("m", points, list("abc"), [(None, None)] * 3)
    svg = draw_chart([curve], Axis("x", x_higher, 0), Axis("y", y_higher, 0), {"m": 0})
    (front,) = [e.get("d") for e in ElementTree.fromstring(svg).iter("path") if e.get("class") == "front"]
    places, _ = markers(svg)
    at, corners = list(map(float, re.match(r"M([\d.]+) ([\d.]+)", front).groups())), []
    for letter, value in re.findall(r"([HV])([\d.]+)", front):
        at[letter == "V"] = float(value)
        corners.append(tuple(at))
    assert corners[1::2] == places[1:]
    for corner, (one, two) in zip(corners[::2], pairwise(places), strict=True):
        worse = (min if x_higher else max)(one[0], two[0]), (max if y_higher else min)(one[1], two[1])
        assert corner == worse  # on the screen, y grows downwards


def test_one_point_and_equal_points_can_be_drawn():
    for points in ([(1.0, 0.0)], [(2.0, 5.0), (2.0, 5.0)]):
        curve = Curve("m", points, list("ab")[: len(points)], [(None, None)] * len(points))
        places, _ = markers(draw_chart([curve], Axis("x", True, 0), Axis("y", True, 0), {"m": 0}))
        assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)


def test_colour_and_shape_tell_methods_apart():
    assert len({(k % COLOURS, SHAPES[k % len(SHAPES)]) for k in range(COLOURS * len(SHAPES))}) == COLOURS * len(SHAPES)


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


@pytest.mark.parametrize("value", [16.9, 0.0, -3e-7, 1e9])
def test_an_axis_has_room_around_values_that_differ_by_rounding_alone(value):
    """The interval of one image is such."""
    span = _Span.around([value, value + abs(value) * 2e-16], 0, 100)
    assert 0 < span.at(value) < 100
