"""The page as a reader has it: opened from the disk in Chromium."""

import csv
import re
import shutil

import pytest

from .finished_run import rewrite, scores_of
from .test_page import IDS, make_run, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM, reason="no chromium here")]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-sync"]  # the rest is in Playwright's own arguments
EVIL = "<img src=x onerror=document.title='evil'></script><script>document.title='evil'</script>"
LONG = "Donaudampfschifffahrtsgesellschaftskapitän" * 4


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    task = tmp_path_factory.mktemp("pages") / "t"
    captions = {image: (f"a cat {k}", f"a Dog {k}") for k, image in enumerate(IDS)}
    make_run(task, "m", captions=captions)
    make_run(task, "n", seed=1)
    make_run(task, "k", seed=2)
    write(task)
    return task


@pytest.fixture
def visit(browser):
    """Opens a page; afterwards, it must have asked for files only and have had no error."""
    contexts, wrong = [], []

    def open_page(task, width=1280, **settings):
        context = browser.new_context(viewport={"width": width, "height": 800}, **settings)
        contexts.append(context)
        context.set_default_timeout(5000)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(error))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r.url))
        page.goto((task / "report.html").as_uri())
        for rows in page.locator(".rows").all():
            rows.evaluate("element => element.scrollIntoView()")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def column(task, method, key):
    (path,) = task.glob(f"{method}-*/scores/*/per_image.csv")
    with path.open() as file:
        return {row["id"]: float(row[key]) for row in csv.DictReader(file)}


def first_cells(page):
    return page.locator(".results tbody th").all_inner_texts()


def test_a_header_sorts_the_table(task, visit):
    page = visit(task)
    assert first_cells(page) == ["k", "m", "n"]
    button = page.get_by_role("button", name="FID ↓", exact=True)
    header = page.locator("th", has=button)
    button.click()
    assert (first_cells(page), header.get_attribute("aria-sort")) == (["k", "n", "m"], "ascending")
    button.focus()
    page.keyboard.press("Enter")
    assert (first_cells(page), header.get_attribute("aria-sort")) == (["m", "n", "k"], "descending")
    page.get_by_role("button", name="method", exact=True).click()
    assert (first_cells(page), header.get_attribute("aria-sort")) == (["k", "m", "n"], "none")


def test_rows_and_images_without_a_number_stay_last(tmp_path, visit):
    for seed, method in enumerate("abc"):
        costs = {"images_per_second": None if method == "a" else 2.0 + seed}
        folder = make_run(tmp_path / "t", method, seed=seed, run={"costs": costs})
    path = scores_of(folder) / "per_image.csv"
    path.write_text(re.sub(r"cat4,[^,]*", "cat4,inf", re.sub(r"cat2,[^,]*", "cat2,", path.read_text())))
    write(tmp_path / "t")
    page = visit(tmp_path / "t")
    for expected in (["c", "b", "a"], ["b", "c", "a"]):
        page.get_by_role("button", name="images/s").click()
        assert first_cells(page) == expected
    page.locator("[name=method]").evaluate("element => { element.value = 2; }")
    page.locator(".rows").evaluate("element => element.scrollIntoView()")
    for order in ("worst", "best"):
        page.locator("[name=order]").select_option(order)
        page.wait_for_selector(".row .tiles")
        assert names(page)[-1] == "cat2"
        assert page.locator(".row").last.locator(".value").last.inner_text() == "–"
        assert names(page)[0 if order == "best" else -2] == "cat4"


def names(page):
    return page.locator(".row .caption b").all_inner_texts()


@pytest.mark.parametrize(("order", "up"), [("worst", True), ("best", False)])
def test_the_gallery_sorts_by_a_metric_of_a_method(task, visit, order, up):
    page = visit(task)
    form = page.locator(".controls")
    form.locator("[name=metric]").select_option("SSIM")
    form.locator("[name=order]").select_option(order)
    form.locator("[name=method]").select_option("n")
    values = column(task, "n", "ssim")
    page.wait_for_selector(".row .tiles")
    assert names(page) == sorted(values, key=values.get, reverse=not up)
    shown = page.locator(".tile.result:has-text('n') .value").all_inner_texts()
    assert shown == [f"{values[image]:.3f}" for image in names(page)]
    assert f"{order} SSIM of n first" in page.get_by_role("status").first.inner_text()


def test_the_gallery_filters_and_counts(task, visit):
    page = visit(task)
    page.locator("[name=filter]").fill("dOG 3")
    page.wait_for_selector(".row .tiles")
    assert names(page) == ["cat3"]
    assert page.locator(".row .caption span").inner_text() == "a cat 3 → a Dog 3"
    page.locator("[name=filter]").fill("nothing")
    assert page.locator(".row").count() == 0
    assert "0 match" in page.get_by_role("status").first.inner_text()


def visible(page):
    """The picture on the stage, by the folder of its file."""
    path = "[...document.querySelectorAll('.stage img')].find(i => getComputedStyle(i).visibility === 'visible').src"
    page.wait_for_function(f"{path}.startsWith('file:')")
    return page.evaluate(path).split("/")[-3:]


def test_enlarging_comparing_and_moving(task, visit):
    page = visit(task)
    opener = page.locator(".tile.result", has_text="m").nth(1)
    opener.click()
    title = page.locator("#viewer h2")
    assert title.inner_text() == "cat1: m"
    assert visible(page)[0].startswith("m-")
    assert visible(page)[-1] == "cat1.png"
    psnr = column(task, "m", "psnr")["cat1"]
    assert f"PSNR dB {psnr:.2f}" in page.locator("#viewer .numbers").inner_text()
    page.keyboard.press("Space")
    assert visible(page)[:2] == ["data", "cats-d1"]
    assert page.locator(".what").inner_text() == "source"
    page.keyboard.press("Space")
    assert visible(page)[0].startswith("m-")
    for key, expected in {"ArrowRight": "cat2: m", "ArrowDown": "cat2: n", "ArrowUp": "cat2: m"}.items():
        page.keyboard.press(key)
        assert title.inner_text() == expected
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert title.inner_text() == "cat0: m"
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    assert opener.evaluate("element => element === document.activeElement")


def test_arrows_follow_the_order_of_the_gallery(task, visit):
    page = visit(task)
    page.locator("[name=order]").select_option("worst")
    values = column(task, "k", "psnr")
    page.locator(".tile.source").first.focus()
    page.keyboard.press("Enter")
    ranked = sorted(values, key=values.get)
    assert page.locator("#viewer h2").inner_text() == f"{ranked[0]}: k"
    assert page.locator(".what").inner_text() == "source"
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer h2").inner_text() == f"{ranked[1]}: k"


def test_holding_a_button_shows_the_source(task, visit):
    page = visit(task)
    page.locator(".tile.result").first.click()
    page.locator("[data-do=hold]").hover()
    page.mouse.down()
    assert page.locator(".what").inner_text() == "source"
    page.mouse.up()
    assert page.locator(".what").inner_text() == "k"
    page.locator("[data-do=next]").click()
    page.keyboard.press("Space")
    assert page.locator("#viewer h2").inner_text() == "cat1: k"
    assert page.locator(".what").inner_text() == "source"


def test_flicker_swaps_until_the_page_is_closed(task, visit):
    page = visit(task)
    page.clock.install()
    page.locator(".tile.result").first.click()
    page.clock.run_for(3000)
    assert page.locator(".what").inner_text() == "k"
    page.locator("[name=flicker]").check()
    page.locator("[name=rate]").fill("2")
    seen = []
    for _ in range(4):
        page.clock.run_for(500)
        seen.append(page.locator(".what").inner_text())
    assert seen == ["source", "k", "source", "k"]
    page.keyboard.press("Escape")
    page.locator("[name=flicker]:not(:checked)").wait_for(state="attached")


def test_no_flicker_for_those_who_want_no_motion(task, visit):
    page = visit(task)
    page.locator(".tile.result").first.click()
    page.locator("[name=flicker]").check()
    page.emulate_media(reduced_motion="reduce")
    page.locator("[name=flicker]:disabled").wait_for()
    assert not page.locator("[name=flicker]").is_checked()
    page = visit(task, reduced_motion="reduce")
    page.locator(".tile.result").first.click()
    assert page.locator("[name=flicker]").is_disabled()


def test_axes_choose_the_drawing(task, visit):
    page = visit(task)
    figure = page.locator("figure").first
    figure.locator("[data-axis=y]").select_option("KID×10³")
    figure.locator("[data-axis=x]").select_option("SSIM")
    shown = figure.locator(".chart:visible")
    assert (shown.count(), shown.get_attribute("data-x"), shown.get_attribute("data-y")) == (1, "ssim", "kid")


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_the_page_follows_the_system_and_the_button(task, visit):
    light, dark = background(visit(task)), visit(task, color_scheme="dark")
    assert light != background(dark)
    dark.locator("#theme").click()
    assert background(dark) == light
    dark.locator("#theme").click()
    assert background(dark) != light


def test_the_command_is_copied(tmp_path, visit):
    make_run(tmp_path / "t", "m", run={"command": "python run.py method=m 'a=<b>'"})
    write(tmp_path / "t")
    page = visit(tmp_path / "t", permissions=["clipboard-read", "clipboard-write"])
    page.locator("details.run summary").first.click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "python run.py method=m 'a=<b>'"


@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_and_long_texts_neither_run_nor_break_the_layout(tmp_path, visit, width):
    texts = [(EVIL, "é 猫 🐈"), (LONG, LONG), ("</script>", "{{ 1 }}"), ("&lt;", "‮abc"), ("", "")]
    task = tmp_path / "t"
    make_run(task, EVIL, captions=dict(zip(IDS, texts, strict=True)), run={"command": LONG, "device": EVIL})
    make_run(task, LONG, seed=1)
    make_run(task, LONG, seed=1, done=False)
    write(task)
    page = visit(task, width)
    page.wait_for_selector(".row .tiles")
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator(".tile.result").nth(2).click()
    assert page.locator("#viewer .caption").inner_text() == f"{LONG} → {LONG}"
    box = page.locator("#viewer").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert page.evaluate(
        "document.querySelector('#viewer').scrollWidth <= document.querySelector('#viewer').clientWidth"
    )
    assert page.title() == "t"
    assert page.locator(".row .caption span").first.inner_text() == f"{EVIL} → é 猫 🐈"


def test_a_phone_scrolls_the_table_and_not_the_page(task, visit):
    page = visit(task, 390, has_touch=True, is_mobile=True)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    inside = page.locator(".scroll").evaluate("element => [element.scrollWidth, element.clientWidth]")
    assert inside[0] > inside[1]
    assert page.locator(".chart text").first.evaluate("e => e.getBoundingClientRect().height") > 11


def test_the_page_alone_shows_its_thumbnails(task, tmp_path, browser):
    shutil.copy(task / "report.html", tmp_path)
    page = browser.new_page()
    page.set_default_timeout(5000)
    page.goto((tmp_path / "report.html").as_uri())
    page.locator(".rows").evaluate("element => element.scrollIntoView()")
    page.locator(".tile.result").first.click()
    page.wait_for_timeout(200)
    assert page.locator(".stage .result").evaluate("image => image.src.startsWith('data:') && image.naturalWidth") == 16
    page.close()


def test_a_page_without_results(tmp_path, visit):
    make_run(tmp_path / "t", "m", done=False)
    write(tmp_path / "t")
    page = visit(tmp_path / "t")
    assert "running, 5 of 5 images" in page.locator("main").inner_text()
    assert page.locator("table").count() == page.locator(".gallery").count() == 0


def test_without_sources_the_first_result_takes_their_place(tmp_path, visit):
    for seed, method in enumerate("mn"):
        folder = make_run(tmp_path / "t", method, seed=seed)
        rewrite(folder / "run.json", lambda run: run["data"].update(source=None, ground_truth=None))
    write(tmp_path / "t")
    page = visit(tmp_path / "t")
    page.locator(".tile").first.click()
    for key, expected in {"Shift": "m", "ArrowDown": "n", "ArrowUp": "m", "ArrowLeft": "m"}.items():
        page.keyboard.press(key)
        assert page.locator("#viewer h2").inner_text() == f"cat0: {expected}"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert page.locator(".what").inner_text() == "m"


def test_one_image(tmp_path, visit):
    make_run(tmp_path / "t", "m", ids=["a b#1?%"])
    write(tmp_path / "t")
    page = visit(tmp_path / "t")
    page.locator(".tile.result").click()
    assert visible(page)[-1] == "a%20b%231%3F%25.png"
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer h2").inner_text() == "a b#1?%: m"


def test_many_images_are_made_as_they_come_into_view(tmp_path, visit):
    make_run(tmp_path / "t", "m", ids=[f"i{k:03d}" for k in range(130)])
    write(tmp_path / "t")
    page = visit(tmp_path / "t")
    assert page.locator(".row").count() == 24
    page.locator("[name=count]").select_option("all")
    page.wait_for_selector(".row .tiles")
    assert page.locator(".row").count() == 130
    assert page.locator(".row:not(:empty)").count() < 30
    page.locator(".row").last.scroll_into_view_if_needed()
    page.locator(".row").last.locator(".tile").first.wait_for()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".row:not(:empty)").count() == 130
