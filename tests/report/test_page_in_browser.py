"""report.html in a headless Chromium: the feature browser, errors, requests, small screens, contrast."""

import re
import shutil
from pathlib import Path

import pytest
from chromium import Chromium, find_chromium
from matplotlib.image import imread
from report_fixture import HOSTILE, write_results

from sae_utils.report.page import write_report

needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="no chromium or chrome executable on PATH")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = Chromium(find_chromium(), tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory) -> Path:
    """A page of four SAEs with 50 features each."""
    return write_report(write_results(tmp_path_factory.mktemp("hostile"), hostile=True))


@pytest.fixture(scope="module")
def large_page(tmp_path_factory) -> Path:
    """A page of 36 SAEs with long names."""
    names = ["a-model-with-a-rather-long-name-1.4b", "another_model_without_a_hyphen_2.8b"]
    shape = {"targets": names, "sources": names, "text_sources": ["web"], "n_seeds": 3, "n_features": 4}
    return write_report(write_results(tmp_path_factory.mktemp("large"), hostile=True, **shape))


@pytest.fixture
def opened(browser, hostile_page):
    """The page, loaded; afterwards nothing may have gone wrong in it, and nothing may have been asked for."""
    browser.open(hostile_page)
    yield browser
    assert browser.errors == []
    assert browser.requests == [hostile_page.as_uri(), "data:,"] or browser.requests == [hostile_page.as_uri()]


def numbers(browser: Chromium) -> list[int]:
    """Latents of the features shown, from top to bottom."""
    return browser.run("[...document.querySelectorAll('.feature')].map((card) => Number(card.id.split('-')[1]))")


def data(browser: Chromium, index: int) -> list[dict]:
    return browser.run(f"JSON.parse(document.getElementById('features-{index}').textContent).features")


def choose(browser: Chromium, name: str, value: str) -> None:
    browser.run(
        f"{{ const box = document.getElementById('{name}'); box.value = '{value}';"
        " box.dispatchEvent(new Event('change', {bubbles: true})); }"
    )


def by(features: list[dict], *keys) -> list[int]:
    return [feature["latent"] for feature in sorted(features, key=lambda each: [key(each) for key in keys])]


@needs_chromium
@pytest.mark.slow
def test_browser_sorts_filters_and_chooses(opened):
    features = data(opened, 0)
    assert numbers(opened) == by(features, lambda each: -each["rate"], lambda each: each["latent"])[:20]
    choose(opened, "sort", "shared")
    assert numbers(opened) == by(features, lambda each: -each["cosine"], lambda each: -each["rate"])[:20]
    choose(opened, "sort", "unshared")
    assert numbers(opened) == by(features, lambda each: each["cosine"], lambda each: -each["rate"])[:20]
    choose(opened, "sort", "fake")
    n_fake = sum(feature["fake"] for feature in features)
    assert numbers(opened) == by(features, lambda each: not each["fake"], lambda each: -each["randomRate"])[:20]
    assert 0 < n_fake < len(features)
    for name, belongs in {
        "fake": lambda each: each["fake"],
        "shared": lambda each: each["cosine"] > 0.7,
        "unshared": lambda each: each["cosine"] <= 0.7,
    }.items():
        choose(opened, "filter", name)
        expected = {feature["latent"] for feature in features if belongs(feature)}
        assert set(numbers(opened)) <= expected and len(numbers(opened)) == min(20, len(expected))
        assert f"of {len(expected)} features" in opened.run("document.getElementById('status').textContent")
    choose(opened, "filter", "all")
    choose(opened, "sort", "rate")
    choose(opened, "sae", "3")
    assert numbers(opened) == by(data(opened, 3), lambda each: -each["rate"], lambda each: each["latent"])[:20]


@needs_chromium
@pytest.mark.slow
def test_browser_turns_pages_by_button_and_by_key(opened):
    status = "document.getElementById('status').textContent.replace('\\u2013', '-')"
    first = numbers(opened)
    assert opened.run(status) == "1-20 of 50 features, page 1 of 3"
    opened.run("document.getElementById('previous').click()")
    assert numbers(opened) == first  # there is no page before
    opened.run("document.getElementById('next').click()")
    second = numbers(opened)
    assert opened.run(status) == "21-40 of 50 features, page 2 of 3" and not set(first) & set(second)
    opened.run("document.getElementById('features').focus()")
    opened.press("n")
    assert opened.run(status) == "41-50 of 50 features, page 3 of 3" and len(numbers(opened)) == 10
    opened.press("ArrowRight")
    assert opened.run(status) == "41-50 of 50 features, page 3 of 3"
    opened.press("ArrowLeft")
    assert numbers(opened) == second
    opened.press("p")
    assert numbers(opened) == first
    opened.run("document.getElementById('answer').querySelector('a, [tabindex]').focus()")
    opened.press("n")
    assert numbers(opened) == first  # keys are the browser's only while the focus is in it


@needs_chromium
@pytest.mark.slow
def test_browser_jumps_to_the_partner(opened):
    choose(opened, "filter", "unshared")
    features = data(opened, 0)
    link = "document.querySelector('button[data-partner]')"
    while not opened.run(f"{link} !== null"):
        opened.run("document.getElementById('next').click()")
    latent = opened.run(f"Number({link}.closest('.feature').id.split('-')[1])")
    partner = next(feature for feature in features if feature["latent"] == latent)["partner"]
    opened.run(f"{link}.click()")
    assert opened.run("document.activeElement.id") == f"feature-{partner}"
    assert opened.run("document.getElementById('sae').value") == "1"
    assert opened.run("document.getElementById('filter').value") == "all"
    box = opened.run("(({top, bottom}) => [top, bottom])(document.activeElement.getBoundingClientRect())")
    assert box[1] > 0 and box[0] < 800


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> tuple[Path, Path]:
    """The same page with all features of two SAEs in it, and with all of them beside it; a name needs escaping."""
    folder, name = tmp_path_factory.mktemp("split"), "a #1 50% <model>?"
    results = write_results(folder, targets=[name], sources=[name], layers=[7], n_latents=64, hostile=True)
    inside = write_report(results)
    within = shutil.copyfile(inside, folder / "inside.html")
    return within, write_report(results, max_bytes=inside.stat().st_size // 2)


def shown_once_loaded(browser: Chromium, sae: int) -> str:
    """Everything that the browser of features has on the page, when it is done with what was chosen."""
    ready = "document.getElementById('lacking').hidden === false || document.querySelectorAll('.feature').length > 0"
    browser.run(
        "document.getElementById('features').replaceChildren(); document.getElementById('lacking').hidden = true"
    )
    choose(browser, "sae", str(sae))
    browser.run(f"new Promise((done) => {{ const wait = () => {ready} ? done() : setTimeout(wait, 5); wait(); }})")
    return browser.run(
        "['features', 'status', 'how-chosen', 'lacking'].map((id) => document.getElementById(id).innerHTML).join()"
    )


@needs_chromium
@pytest.mark.slow
def test_features_look_the_same_inside_the_page_and_beside_it(browser, pages):
    """A page from a disk may read them as scripts only, and only if its policy lets it."""
    seen = []
    for page in pages:
        browser.open(page)
        seen.append([shown_once_loaded(browser, sae) for sae in (0, 1, 0)])
        assert browser.errors == []
        beside = [url for url in browser.requests if "/features/" in url]
        assert len(beside) == len(set(beside)) == (2 if page is pages[1] else 0), "each file once"
    assert seen[0] == seen[1] and "Feature" in seen[0][0] and seen[0][0] != seen[0][1]


@needs_chromium
@pytest.mark.slow
def test_the_partner_may_be_in_another_file(browser, pages):
    browser.open(pages[1])
    shown_once_loaded(browser, 0)
    assert len([url for url in browser.requests if "/features/" in url]) == 1
    link = "document.querySelector('button[data-partner]')"
    partner = browser.run(f"{link}.dataset.partner")
    browser.run(f"{link}.click()")
    focused = f"document.activeElement.id === 'feature-{partner}'"
    browser.run(f"new Promise((done) => {{ const wait = () => {focused} ? done() : setTimeout(wait, 5); wait(); }})")
    assert browser.run("document.getElementById('sae').value") == "1" and browser.errors == []


@needs_chromium
@pytest.mark.slow
def test_a_file_that_is_missing_is_named_until_it_is_there(browser, pages, tmp_path):
    """Somebody sends the page alone; who gets it must know what to ask for."""
    page = Path(shutil.copytree(pages[1].parent, tmp_path / "copied", dirs_exist_ok=True)) / "report.html"
    missing, other = sorted((page.parent / "features").iterdir())
    content = missing.read_bytes()
    for damage in (missing.unlink, lambda: missing.write_bytes(content[:-99])):
        damage()
        browser.open(page)
        assert f"in features/{missing.name}, which is not beside this page" in shown_in_words(browser, 0)
        assert numbers(browser) == []
        assert other.name not in shown_once_loaded(browser, 1) and len(numbers(browser)) == 20
        missing.write_bytes(content)
        assert missing.name not in shown_once_loaded(browser, 0) and len(numbers(browser)) == 20


def shown_in_words(browser: Chromium, sae: int) -> str:
    """The line that says what is missing."""
    shown_once_loaded(browser, sae)
    return browser.run("document.getElementById('lacking').textContent")


@needs_chromium
@pytest.mark.slow
def test_browser_tells_every_source_in_a_row(browser, large_page):
    """Beside each other they can be compared; in one sentence seven of them cannot."""
    browser.open(large_page, width=1280)
    first = next(each for each in data(browser, 0) if each["latent"] == numbers(browser)[0])
    table = "document.querySelector('.feature .sources')"
    shown = browser.run(f"[...{table}.rows].map((row) => [...row.cells].map((cell) => cell.textContent))")
    assert shown[0] == ["source", "found in", "fires on"]
    assert [row[0] for row in shown[1:]] == [source[0] for source in first["sources"]] and len(shown) == 4
    for row, (_, found, rate) in zip(shown[1:], first["sources"], strict=True):
        for cell, value in zip(row[1:], (found, rate), strict=True):
            if value:
                assert float(cell.rstrip("%")) == pytest.approx(100 * value, rel=0.02)
            else:
                assert cell == {None: "\u2013", 0: "never"}[value]


@needs_chromium
@pytest.mark.slow
def test_browser_shows_hostile_tokens_as_they_are(opened):
    """Tokens are data: nothing of them runs, and what can be seen of them reads as it was encoded."""
    assert opened.run("typeof window.broken") == "undefined"
    assert opened.run("document.querySelectorAll('#features img, #features script').length") == 0
    shown = opened.run("[...document.querySelector('.context').querySelectorAll('.token')].map((t) => t.textContent)")
    printable = [token for token in HOSTILE if token and token.isprintable()]
    assert [token for token in shown if token in printable][: len(printable)] == printable
    peak = opened.run("document.querySelector('.token.peak').title")
    assert re.fullmatch(r"activation [\d.,]+, peak", peak)
    opened.run("document.querySelector('.token.peak').click()")
    assert peak in opened.run("document.getElementById('bubble').textContent")


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_sideways_scrolling_and_readable_text(browser, large_page, width, scheme):
    browser.open(large_page, width=width, scheme=scheme)
    assert browser.run("document.scrollingElement.scrollWidth") <= width
    assert browser.errors == []
    ink, paper = browser.run("['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])")
    assert contrast(ink, paper) > 10
    label = browser.run("getComputedStyle(document.querySelector('.chart text')).fill")
    assert contrast(label, paper) > 4.5
    peak = browser.run("getComputedStyle(document.querySelector('.token.peak.active')).backgroundColor")
    assert contrast(ink, peak) > 4.5


def edge_brightness(browser: Chromium, path: Path) -> float:
    """Of the brightest pixel in a column 3 pixels inside the answer table's right edge, 0 to 1; text is darker."""
    box = browser.run(
        "(({right, top, bottom}) => [right, top, bottom])"
        "(document.querySelector('#answer .scroll').getBoundingClientRect())"
    )
    browser.screenshot(path)
    right, top, bottom = (round(each) for each in box)
    return float(imread(path)[max(top, 60) : min(bottom, 790), right - 3, :3].mean(axis=-1).max())


@needs_chromium
@pytest.mark.slow
def test_an_edge_beyond_which_a_table_goes_on_has_a_shadow(browser, large_page, tmp_path):
    """A phone shows no scroll bar until it is touched: half of the numbers would not be looked for."""
    scroll = "document.querySelector('#answer .scroll')"
    browser.open(large_page, width=1200)
    browser.run(f"{scroll}.scrollIntoView()")
    plain = edge_brightness(browser, tmp_path / "wide.png")
    browser.open(large_page, width=390)
    browser.run(f"{scroll}.scrollIntoView()")
    assert edge_brightness(browser, tmp_path / "more.png") < plain - 0.1
    browser.run(f"{scroll}.scrollLeft = 9999")
    assert edge_brightness(browser, tmp_path / "end.png") == plain > 0.9


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two opaque enough CSS colours, 1 to 21 (WCAG 2)."""
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [float(part) for part in re.findall(r"[\d.]+", colour.replace("srgb", ""))][:3]
    scaled = [part if "srgb" in colour else part / 255 for part in parts]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in scaled]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
