"""A scan's page in a browser, opened from disk: filters, blur, corrections; and a guard that is trained on these."""

import json

import pytest
from PIL import Image

import safeqwen_cli
from tools.demo.pictograms import draw


Axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe
expect = pytest.importorskip("playwright.sync_api").expect
HARMS = ("safe", "suicide", "weapon_related_violence", "terrorism", "sexual_content")
SEED = 6_000_000


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    """A folder in which a scan of 59 drawings, a copy and a damaged file was started, with its report."""
    folder = tmp_path_factory.mktemp("scan")
    pictures = folder / "pictures"
    pictures.mkdir()
    for i in range(59):
        draw(HARMS[i % len(HARMS)], SEED + i, size=84).save(pictures / f"{i:02d}.png")
    Image.open(pictures / "01.png").save(pictures / "copy.png")
    (pictures / "cut <b>.png").write_bytes((pictures / "02.png").read_bytes()[:200])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert safeqwen_cli.main(["scan", "pictures", "--out", "rows.jsonl", "--quiet"]) == 1  # one error
        assert safeqwen_cli.main(["report", "rows.jsonl", "--out", "report.html", "--heatmaps", "3", "--quiet"]) == 0
    return folder


@pytest.fixture(params=[(390, "light"), (1400, "dark")], ids=lambda pair: f"{pair[0]}-{pair[1]}")
def page(request, chromium, scanned):
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.asked, page.errors = [], []
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto((scanned / "report.html").as_uri())
    page.wait_for_selector("html[data-ready]")
    page.wait_for_selector("#cards > li")
    yield page
    assert page.errors == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def test_the_page_is_accessible_and_as_wide_as_the_window(page):
    found = Axe().run(page).response
    assert len(found["passes"]) > 20  # it did look
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_filters_and_sorting_show_what_they_say(page):
    assert "61 of 61 pictures; shown: 1 to 48" in page.inner_text("#found")
    page.click("#pages button:text('Next')")
    assert "shown: 49 to 61" in page.inner_text("#found") and page.locator("#cards > li").count() == 13
    page.select_option("[name=action]", "error")
    expect(page.locator("#cards > li")).to_have_count(1)
    card = page.locator("#cards article")
    assert "Not judged: ends before the picture does" in card.inner_text() and "safe" not in card.inner_text()
    page.click("button[type=reset]")
    page.fill("[name=text]", "COPY")
    expect(page.locator("#found")).to_contain_text("1 of 61")
    page.fill("[name=text]", "nothing is called so")
    expect(page.locator("#found")).to_have_text("0 of 61 pictures.")
    page.click("button[type=reset]")
    page.select_option("[name=sort]", "low")
    page.wait_for_timeout(200)
    unsafe = [
        float(text.split()[0])
        for text in page.locator("#cards .bars tbody tr:first-child td:nth-child(2)").all_inner_texts()
    ]
    assert len(unsafe) == 48 and unsafe == sorted(unsafe)


def test_pictures_are_blurred_until_asked_for_by_keyboard_too(page):
    tile = page.locator("#cards .tile").first
    blurred = "tile => getComputedStyle(tile.querySelector('img')).filter.includes('blur')"
    assert tile.evaluate(blurred)
    tile.focus()
    page.keyboard.press("Enter")
    assert not tile.evaluate(blurred) and tile.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Space")
    assert tile.evaluate(blurred)
    page.check("[name=clear]")
    assert not page.locator(".tile[aria-pressed=false]").count()
    page.click("button[type=reset]")
    expect(page.locator(".tile[aria-pressed=true]")).to_have_count(0)


def test_a_heat_map_is_shown_on_demand(page):
    button = page.locator("#cards .map").first
    card = button.locator("xpath=ancestor::article")
    before = card.locator("img").get_attribute("src")
    assert not card.locator(".mapped").is_visible()
    button.click()
    assert card.locator("img").get_attribute("src") != before and "comes from" in card.locator(".mapped").inner_text()
    button.click()
    assert card.locator("img").get_attribute("src") == before


def test_copies_are_in_a_group_and_are_corrected_in_both_places(page):
    assert "Group 1: 2 pictures, verdicts agree" in page.inner_text("#group-cards")
    article = page.locator("#group-cards article").first
    article.locator("select").select_option(label="suicide")
    index = article.get_attribute("data-index")
    page.fill("[name=text]", article.locator(".name").inner_text())
    expect(page.locator("#found")).to_contain_text("1 of 61")
    twin = page.locator(f"#cards article[data-index='{index}'] select")
    assert twin.evaluate("one => one.selectedOptions[0].textContent") == "suicide"
    twin.select_option("")
    assert article.locator("select").input_value() == "" and page.is_disabled("#save")


def test_corrections_of_ten_pictures_train_a_guard(page, scanned, monkeypatch):
    page.select_option("[name=sort]", "name")
    page.wait_for_timeout(200)
    for i in range(10):
        page.locator("#cards article").nth(i).locator("select").select_option(
            str(i % 2)
        )  # safe, gender_discrimination
    assert "10 corrections" in page.inner_text("#corrected")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "corrections.jsonl"
    monkeypatch.chdir(scanned)
    download.value.save_as(scanned / "corrections.jsonl")
    names = ("safe", "gender_discrimination")
    lines = [json.loads(line) for line in (scanned / "corrections.jsonl").read_text().splitlines()]
    expected = [{"images": [f"pictures/{i:02d}.png"], "safety_label": names[i % 2]} for i in range(10)]
    assert sorted(lines, key=lambda line: line["images"]) == expected
    if page.viewport_size["width"] != 390:  # once is enough
        return
    config = safeqwen_cli.__path__[0] + "/../configs/guard_only.yaml"
    words = ["train", config, "--model", "demo", "--processor", "demo", "--data", "corrections.jsonl"]
    assert safeqwen_cli.main([*words, "--output_dir", "run", "--num_train_epochs", "2"]) == 0
    record = json.loads((scanned / "run" / "run.json").read_text())
    assert '"gender_discrimination": 5' in json.dumps(record)
