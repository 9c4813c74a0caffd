"""What visitors see in a real browser. Times are those of the page itself, in milliseconds."""

import base64
import io
import re
import threading

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from safeqwen import SafetyPolicy
from safeqwen.browser.visit import Judge


expect.set_options(timeout=20_000)
IN_THE_QUEUE = re.compile("/queue/join")  # what waits for the model

RECORD = """() => {
  window.seen = {};
  const look = () => {
    const note = (name, found) => { if (found && !(name in window.seen)) window.seen[name] = performance.now(); };
    note("verdict", document.querySelector("#verdicts .decision"));
    note("answer", document.querySelector("#conversation .answer"));
    const answer = document.querySelector("#conversation .answer");
    if (answer) (window.seen.answers ??= []).push(answer.textContent);
  };
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


def ask(page, question):
    page.get_by_label("Ask about the picture").fill(question)
    page.get_by_role("button", name="Ask").click()


def map_of(page):
    return page.locator("#heatmap img").get_attribute("src")


def detail_of(url):
    """How much neighbouring pixels of a picture differ, on average."""
    pixels = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L")
    return float(np.abs(np.diff(np.asarray(pixels, dtype=float))).mean())


def test_the_verdict_stands_before_the_first_word_of_an_answer_that_streams(open_page, send, weapon, monkeypatch):
    verdict, is_asked = Judge.verdict, threading.Event()
    monkeypatch.setattr(Judge, "verdict", lambda *args: is_asked.wait(20) and verdict(*args))
    page = open_page()
    page.evaluate(RECORD)
    page.get_by_label("Ask about the picture").fill("What is this?")
    with page.expect_response(IN_THE_QUEUE):
        send(page, ("weapon.png", weapon))
    with page.expect_response(IN_THE_QUEUE):
        page.get_by_role("button", name="Ask").click()
    is_asked.set()
    expect(page.locator("#conversation [aria-busy=false] .answer")).to_be_visible()
    expect(page.locator("#verdicts")).to_contain_text("weapon-related")
    seen = page.evaluate("window.seen")
    print(f"verdict after {seen['verdict']:.0f} ms, first word after {seen['answer']:.0f} ms")
    assert seen["verdict"] < seen["answer"]
    assert len({*seen["answers"]}) > 1  # it grew
    expect(page.locator("#conversation .note")).to_have_count(0)  # the picture was judged when its question came


def test_the_verdict_does_not_wait_for_the_map(open_page, send, weapon, monkeypatch):
    heatmap, is_seen = Judge.heatmap, threading.Event()
    monkeypatch.setattr(Judge, "heatmap", lambda *args: is_seen.wait(20) and heatmap(*args))
    page = open_page()
    send(page, ("weapon.png", weapon))
    expect(page.locator("#verdicts .decision")).to_be_visible(timeout=10_000)
    is_seen.set()
    expect(page.locator("#heatmap img")).to_be_visible()


def test_the_policy_beside_the_weights_decides(open_page, send, weapon, loaded, monkeypatch):
    model, _ = loaded
    policy = SafetyPolicy(categories=model.config.safety_categories, actions={"unsafe": "block"})
    monkeypatch.setattr(model, "safety_policy", policy, raising=False)
    page = open_page()
    send(page, ("weapon.png", weapon))
    expect(page.locator("#verdicts .decision")).to_contain_text("block")


def test_the_page_says_what_the_demo_knows_and_what_becomes_of_pictures(open_page):
    page = open_page()
    expect(page.locator(".about")).to_contain_text("It is not for moderation")
    expect(page.locator(".about")).to_contain_text("Nothing is kept")


def test_an_answer_that_fails_says_why(open_page, loaded, monkeypatch):
    model, _ = loaded

    def fail(**inputs):
        raise RuntimeError("no memory is left")

    monkeypatch.setattr(model, "generate", fail)
    page = open_page()
    ask(page, "Who are you?")
    expect(page.locator("#conversation .note")).to_contain_text("The answer has failed: no memory is left")


def test_the_map_changes_with_category_and_opacity(open_page, send, weapon):
    page = open_page()
    send(page, ("weapon.png", weapon))
    expect(page.locator("#heatmap figcaption")).to_contain_text("weapon-related")
    first = map_of(page)
    page.get_by_label("Category", exact=True).click()  # a listbox in older Gradio
    page.get_by_role("option", name=re.compile("suicide", re.I)).click()
    expect(page.locator("#heatmap figcaption")).to_contain_text(re.compile("suicide", re.I))
    second = map_of(page)
    page.get_by_role("slider", name=re.compile("Opacity")).focus()
    page.keyboard.press("Home")
    page.wait_for_function("before => document.querySelector('#heatmap img').src !== before", arg=second)
    assert len({first, second, map_of(page)}) == 3


def test_the_map_is_of_the_picture_that_was_chosen(open_page, send, weapon, harmless):
    page = open_page()
    send(page, ("first.png", harmless), ("last.png", weapon))
    page.get_by_label("Show flagged pictures as they are").check()
    shown = page.locator("#heatmap img")
    expect(shown).to_have_attribute("alt", re.compile("^last.png"))
    page.get_by_label("Picture", exact=True).click()
    page.get_by_role("option", name="1: first.png").click()
    expect(shown).to_have_attribute("alt", re.compile("^first.png"))


def test_a_flagged_picture_is_blurred_until_it_is_asked_for(open_page, send, weapon):
    page = open_page()
    send(page, ("weapon.png", weapon))
    expect(page.locator("#heatmap figcaption")).to_contain_text("blurred until you ask")
    expect(page.locator("#verdicts .pictures img")).to_be_hidden()
    page.locator("#verdicts summary").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#verdicts .pictures img")).to_be_visible()
    blurred = map_of(page)
    page.get_by_label("Show flagged pictures as they are").check()
    expect(page.locator("#heatmap figcaption")).not_to_contain_text("blurred")
    assert detail_of(blurred) < 0.5 * detail_of(map_of(page))


def test_a_flagged_picture_stops_the_answer_if_a_visitor_wants_it_so(open_page, send, weapon, harmless):
    page = open_page()
    page.get_by_label("No answer about flagged pictures").check()
    send(page, ("weapon.png", weapon))
    expect(page.locator("#verdicts .decision")).to_be_visible()
    ask(page, "What is this?")
    expect(page.locator("#conversation .note")).to_contain_text("There is no answer: a picture is flagged")
    expect(page.locator("#conversation .answer")).to_have_count(0)
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#conversation")).to_contain_text("Nothing was asked yet")
    send(page, ("harmless.png", harmless))
    expect(page.locator("#verdicts .decision")).to_contain_text(re.compile("not flagged|allow"))
    ask(page, "What is this?")
    expect(page.locator("#conversation .answer")).to_be_visible()


def test_a_conversation_has_turns_and_an_answer_without_a_picture_says_that_nothing_was_judged(open_page):
    page = open_page()
    ask(page, "Who are you? <b>`${1+1}`{{2}}<img src=x>")
    expect(page.locator("#conversation .note")).to_contain_text("Nothing was judged")
    expect(page.locator("#conversation .question")).to_contain_text("<b>`${1+1}`{{2}}<img src=x>")
    expect(page.locator("#conversation [aria-busy=false]")).to_be_visible()
    ask(page, "And now?")
    expect(page.locator("#conversation .turn")).to_have_count(2)


def test_bad_files_are_refused_with_their_reasons_and_the_good_one_is_judged(open_page, send, weapon):
    huge = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(huge, "PNG")
    page = open_page()
    files = [("cut.png", weapon[:-60]), ("words.png", b"not a picture"), ("huge.png", huge.getvalue())]
    send(page, *files, ("empty.png", b""), ("good.png", weapon))
    expect(page.locator("#verdicts .decision")).to_have_count(1)
    errors = page.locator("#verdicts .error")
    expect(errors).to_have_count(4)
    for name in ("cut", "words", "huge", "empty"):
        expect(errors.filter(has_text=f"{name}.png")).to_have_count(1)


def test_an_animation_is_as_unsafe_as_its_least_safe_frame(open_page, send, animation):
    page = open_page()
    send(page, ("moving.gif", animation))
    expect(page.locator("#verdicts")).to_contain_text("least safe of 2 views")
    expect(page.locator("#verdicts tbody")).to_contain_text(re.compile("weapon", re.I))


@pytest.mark.parametrize(
    "link", ["http://127.0.0.1:1/a.png", "file:///etc/hostname", "/etc/hostname", "ftp://a/b.png"]
)
def test_a_link_into_the_machine_is_refused(open_page, link):
    page = open_page()
    page.get_by_label("Or a link").fill(link)
    page.get_by_role("button", name="Judge link").click()
    expect(page.locator("#verdicts .error")).to_contain_text(re.compile("not public|private|is no link", re.I))
    expect(page.locator("#verdicts .decision")).to_have_count(0)


def test_two_visitors_at_once_have_their_own_verdicts(open_page, send, weapon, harmless):
    first, second = open_page(), open_page()
    send(first, ("one.png", weapon))
    send(second, ("two.png", harmless))
    ask(first, "What is this?")
    ask(second, "What is that?")
    for page, own, other in ((first, "one.png", "two.png"), (second, "two.png", "one.png")):
        expect(page.locator("#verdicts .name")).to_have_text(own)
        expect(page.locator("#conversation [aria-busy=false] .answer")).to_be_visible()
        expect(page.locator("#verdicts")).not_to_contain_text(other)
    expect(first.locator("#conversation")).not_to_contain_text("What is that?")


def test_a_picture_can_be_pasted_photographed_or_taken_from_the_examples(open_page, weapon):
    page = open_page()
    page.evaluate(
        """data => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(data)], "pasted.png", { type: "image/png" }));
          document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
        }""",
        list(weapon),
    )
    expect(page.locator("#verdicts .name")).to_have_text("pasted.png")
    page.get_by_role("button", name="cruelty").click()
    expect(page.locator("#verdicts .name")).to_have_text("cruelty.png")
    expect(page.locator("#verdicts tbody")).to_contain_text(re.compile("animal", re.I))
    page.get_by_role("button", name="Take a photograph").click()
    page.get_by_text("Click to Access Webcam").click()
    page.wait_for_function("document.querySelector('#photograph video').videoWidth > 0")
    page.get_by_role("button", name="capture photo").click()
    expect(page.locator("#verdicts .name")).not_to_have_text("cruelty.png")
    expect(page.locator("#verdicts .decision")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_axe_finds_no_serious_fault_and_nothing_is_wider_than_the_screen(open_page, send, weapon, theme, width):
    page = open_page(color_scheme=theme, viewport={"width": width, "height": 900})
    send(page, ("weapon.png", weapon))
    ask(page, "What is this?")
    expect(page.locator("#conversation [aria-busy=false] .answer")).to_be_visible()
    expect(page.locator("#heatmap img")).to_be_visible()
    expect(page.locator("#pictures .icon-button")).to_have_count(0)  # Gradio's own, until the field is empty again
    faults = [fault for fault in Axe().run(page).response["violations"] if fault["impact"] in ("serious", "critical")]
    assert not faults, [(fault["id"], [node["html"][:200] for node in fault["nodes"]]) for fault in faults]
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_no_request_leaves_this_computer_and_nothing_is_kept_in_the_browser(open_page, send, weapon, address):
    page = open_page()
    send(page, ("weapon.png", weapon))
    ask(page, "What is this?")
    expect(page.locator("#conversation [aria-busy=false] .answer")).to_be_visible()
    elsewhere = [url for url in page.requested if not url.startswith((address, "data:", "blob:"))]
    assert not elsewhere
    assert page.evaluate("indexedDB.databases()") == []


def test_of_nine_pictures_the_ninth_is_refused_and_questions_make_no_room(open_page, send, harmless):
    page = open_page()
    files = [(f"{i}.png", harmless) for i in range(9)]  # one content and nine names
    send(page, *files)
    expect(page.locator("#verdicts .verdict")).to_have_count(9)
    expect(page.locator("#verdicts .error")).to_have_text(re.compile("room for 8 pictures"))
    ask(page, "What are these?")
    expect(page.locator("#conversation [aria-busy=false] .answer")).to_be_visible()
    send(page, ("tenth.png", harmless))
    expect(page.locator("#verdicts .error")).to_have_count(2)
    expect(page.locator("#verdicts .decision")).to_have_count(8)


def test_a_file_dropped_twice_at_once_is_judged_twice(open_page, send, harmless):
    page = open_page()
    send(page, ("same.png", harmless), ("same.png", harmless))
    expect(page.locator("#verdicts .decision")).to_have_count(2)


def test_who_starts_over_while_the_model_answers_gets_nothing_of_the_old_conversation(
    open_page, send, weapon, slow_model
):
    page = open_page()
    send(page, ("weapon.png", weapon))
    expect(page.locator("#heatmap img")).to_be_visible()
    ask(page, "What is this?")
    expect(page.locator("#conversation .answer")).to_be_visible()
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#conversation")).to_contain_text("Nothing was asked yet")
    page.wait_for_timeout(1_500)  # some tokens
    expect(page.locator("#conversation")).to_contain_text("Nothing was asked yet")
    ask(page, "And now?")
    expect(page.locator("#conversation .turn")).to_have_count(1)
    expect(page.locator("#conversation .note").first).to_contain_text("Nothing was judged")
