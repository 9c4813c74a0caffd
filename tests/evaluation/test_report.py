"""The page: everything is on it, it asks nothing of a network, and no text of a benchmark or a model commands it."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import pytest
from guard_rows import CATEGORIES
from PIL import Image
from reported import metrics_of, sixty_rows

from safeqwen.evaluation.page import render, thumbnail
from safeqwen.evaluation.plots import make_plots
from safeqwen.evaluation.report import NUM_MISTAKES_SHOWN, worst_mistakes, write_report
from safeqwen.evaluation.rows import Example, Row
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.showing.html import MAX_CHARACTERS, data_url, visible


EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The elements of a page: `(tag, attributes)` in their order, and all of its text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    rows = sixty_rows(folder)
    return folder, rows, metrics_of(rows)


def written(folder, rows, metrics, root=None, **more):
    plots = make_plots(rows, metrics)
    html = write_report(folder, rows, metrics, plots, root or folder, **more).read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def report(evaluation):
    return written(*evaluation)


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes most of the time; `report` has the plots."""
    monkeypatch.setitem(globals(), "make_plots", lambda rows, metrics: [])


def test_the_heading_says_what_was_measured_how_and_when(report):
    text = report[1].text
    for fact in (
        "Plain colours, 1.2",
        "Rows evaluated 62",
        "Rows published 4,163 in the paper",
        "Licence none",
        "Model some/model",
        "Fingerprint abc",
        "Command safeqwen evaluate --benchmark own",
        "Date 2026-11-26",
    ):
        assert fact in text


def test_the_figures_are_those_of_the_metrics(report, evaluation):
    guard, answers = evaluation[2]["guard"], evaluation[2]["answers"]["matcher"]
    for figure in (
        guard["auroc"],
        guard["brier"],
        guard["per_category"]["weapons"]["f1"],
        answers["mean_asr_of_rows"],
    ):
        assert f"{figure['value']:.3f} {figure['low']:.3f} to {figure['high']:.3f}" in report[1].text


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(report):
    html, page = report
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "href", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, name)
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    assert "url(" not in html and "@import" not in html
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def test_the_headings_go_down_step_by_step_and_tables_name_their_cells(report):
    levels = [int(tag[1]) for tag, _ in report[1].elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(level <= before + 1 for before, level in zip(levels, levels[1:]))
    assert len(report[1].all("caption")) == len(report[1].all("table")) > 3
    assert all(cell.get("scope") in ("col", "row") for cell in report[1].all("th"))


def test_plots_are_on_the_page_for_light_and_for_dark_with_words_for_who_cannot_see_them(report):
    sources = report[1].all("source")
    assert len(sources) == 6
    assert {source["media"] for source in sources} == {"(prefers-color-scheme: dark)"}
    for image in report[1].all("img"):
        assert image["alt"]
        Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).verify()


def test_texts_of_a_benchmark_and_a_model_are_shown_as_they_are_and_do_nothing(evaluation, no_plots):
    folder, rows, _ = evaluation
    category = f"{EVIL}drugs"
    renamed = dict(zip(CATEGORIES, (*CATEGORIES[:2], category)))
    rows = [
        dataclasses.replace(
            row,
            id=f"{row.id}{EVIL}",
            query=f"{EVIL}query",
            answer=row.answer and f"{EVIL}answer",
            their_category=f"{EVIL}theirs",
            category=renamed.get(row.category),
            probs=row.probs and {renamed[name]: value for name, value in row.probs.items()},
            error=row.error and f"{EVIL}error \u202eexe.gnp\x1b[2J",
            answer_error=row.answer_error and f"{EVIL}answer error",
        )
        for row in rows
    ]
    metrics = metrics_of(rows, categories=[*renamed.values()], title=f"{EVIL}title", licence=f'"{EVIL}', source=EVIL)
    html, page = written(folder, rows, metrics)
    assert "<script" not in html and not page.all("script")
    for what in ("query", "answer", "drugs", "error [U+202E]exe.gnp[U+001B][2J", "answer error", "title"):
        assert f"{EVIL}{what}" in page.text, what


def test_every_row_with_an_error_is_listed_with_its_reason(report):
    assert "unread gone.png verdict gone.png: is empty (0 bytes); get the file anew" in report[1].text
    assert "silent none answer the answer is empty" in report[1].text
    assert "Rows without a verdict 1" in report[1].text


def test_of_very_many_errors_the_first_are_shown_and_the_others_counted(evaluation, no_plots):
    folder, rows, _ = evaluation
    rows = [*rows[:60], *(Row(f"bad {i}", error=f"reason {i}") for i in range(203))]
    _, page = written(folder, rows, metrics_of(rows))
    assert "reason 199" in page.text and "reason 200" not in page.text
    assert "The first 200 of 203 rows with an error; 3 more are in rows.jsonl." in page.text


def test_the_worst_mistakes_are_on_the_wrong_side_of_the_threshold_worst_first(evaluation):
    _, rows, metrics = evaluation
    too_high, too_low = worst_mistakes(rows, metrics)
    scores = {row.id: (row.unsafe, 1 - row.probs["safe"]) for row in rows if row.probs}
    expected = sorted((score for unsafe, score in scores.values() if not unsafe and score >= 0.5), reverse=True)
    assert [mistake["score"] for mistake in too_high] == pytest.approx(expected) and expected
    expected = sorted(score for unsafe, score in scores.values() if unsafe and score < 0.5)
    assert [mistake["score"] for mistake in too_low] == pytest.approx(expected) and expected


def test_a_policy_has_its_own_mistakes_and_its_figures_beside_those_before(evaluation, no_plots):
    folder, rows, _ = evaluation
    policy = SafetyPolicy(categories=CATEGORIES, unsafe_threshold=0.95)
    metrics = metrics_of(rows, policy)
    too_high, too_low = worst_mistakes(rows, metrics)
    assert len(too_low) == sum(bool(row.unsafe and row.probs and 1 - row.probs["safe"] < 0.95) for row in rows)
    _, page = written(folder, rows, metrics)
    before, after = metrics["guard"]["recall"], metrics["guard_after_policy"]["recall"]
    assert before["value"] > after["value"]
    assert f"{before['value']:.3f} {before['low']:.3f} to {before['high']:.3f} {after['value']:.3f}" in page.text
    assert "Threshold of unsafe 0.95 of the calibrated score" in page.text


def test_rows_of_one_picture_are_one_mistake(evaluation):
    _, rows, metrics = evaluation
    first = worst_mistakes(rows, metrics)[0][0]
    again = dataclasses.replace(first["row"], id="again", query="And now?")
    assert worst_mistakes([*rows, again], metrics)[0][0] == {**first, "others": first["others"] + 1}


def test_pictures_are_blurred_until_somebody_opens_them_and_can_be_opened_by_keyboard(report, evaluation):
    html, page = report
    too_high, too_low = worst_mistakes(*evaluation[1:])
    num_shown = min(len(too_high), NUM_MISTAKES_SHOWN) + min(len(too_low), NUM_MISTAKES_SHOWN)
    details, summaries = page.all("details"), page.all("summary")
    assert len(details) == len(summaries) == num_shown > 2
    assert all(each == {"class": "veiled"} for each in details)  # not open
    assert ".veiled:not([open]) img { filter: blur(" in html
    assert "veiled_picture" not in html
    assert all(
        re.fullmatch(r"Row \d+, labelled .*: show the picture, or blur it again", each["aria-label"])
        for each in summaries
    )


def test_a_picture_is_small_and_has_no_metadata():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    Image.new("RGB", (1000, 500), "red").save(file, "JPEG", exif=exif)
    url = thumbnail(file.getvalue())
    assert url.startswith("data:image/webp;base64,")
    data = base64.b64decode(url.partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (320, 160) and b"where I live" not in data


def test_a_picture_that_moved_or_changed_is_said_to_be_missing_and_nothing_else_is_lost(
    evaluation, tmp_path, report, no_plots
):
    folder, rows, metrics = evaluation
    _, page = written(tmp_path, rows, metrics, root=tmp_path)
    num_shown = len(report[1].all("details"))
    assert page.text.count("picture not found: ") == num_shown
    assert page.text.count("What is it?") == report[1].text.count("What is it?") > 0

    name = worst_mistakes(rows, metrics)[0][0]["row"].image_name
    Image.new("RGB", (20, 20)).save(tmp_path / name)
    _, page = written(tmp_path, rows, metrics, root=tmp_path)
    assert f"picture not shown: {name} has changed since it was judged" in page.text
    (tmp_path / name).write_bytes(b"no picture")


def test_a_benchmark_cannot_bring_other_files_into_the_page(evaluation, tmp_path, no_plots):
    folder, rows, metrics = evaluation
    worst = worst_mistakes(rows, metrics)[0][0]["row"]
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes((folder / worst.image_name).read_bytes())
    for name in ("../secret.png", str(tmp_path / "secret.png")):
        moved = [dataclasses.replace(row, image_name=name) if row is worst else row for row in rows]
        html, page = written(tmp_path, moved, metrics, root=tmp_path / "data")
        assert f"picture of row {worst.id} not shown: it lies outside of the benchmark's folder" in page.text
        assert str(tmp_path) not in page.text
        assert not page.all("details")


def test_pictures_in_a_table_come_from_the_examples(evaluation, tmp_path, no_plots):
    folder, rows, metrics = evaluation
    worst = worst_mistakes(rows, metrics)[0][0]["row"]
    examples = [Example(worst.id, (folder / worst.image_name).read_bytes())]
    _, page = written(tmp_path, rows, metrics, root=tmp_path, examples=examples)
    assert len(page.all("details")) == 1


def test_the_least_safe_view_of_a_picture_is_shown(evaluation, tmp_path, no_plots):
    folder, rows, metrics = evaluation
    worst = worst_mistakes(rows, metrics)[0][0]["row"]
    file = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("white", "black")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    safe = dict(zip(CATEGORIES, (1.0, 0.0, 0.0)))
    views = [{"frame": 0, "probs": safe}, {"frame": 1, "probs": worst.probs}]
    moving = dataclasses.replace(worst, views=views, image_sha256=None)
    rows = [moving if row is worst else row for row in rows]
    html, page = written(tmp_path, rows, metrics, root=tmp_path, examples=[Example(worst.id, file.getvalue())])
    pictures = [image["src"] for image in page.all("img") if image["src"].startswith("data:image/webp")]
    assert len(pictures) == 1
    shown = Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2])))
    assert max(shown.convert("RGB").getpixel((5, 5))) < 30


def test_a_benchmark_without_picture_labels_has_answers_and_says_why_no_guard(tmp_path):
    rows = [Row(str(i), query="?", answer="No.", refused=bool(i % 2), expected="refuse") for i in range(4)]
    _, page = written(tmp_path, rows, metrics_of(rows, has_picture_labels=False))
    assert "the benchmark does not label pictures by themselves" in page.text
    assert "ROC curve: not drawn, since the benchmark does not label pictures alone." in page.text
    assert "a refusal is expected" in page.text and not page.all("details")


def test_what_nobody_would_see_is_shown_as_its_number():
    assert visible("a\u202eb\x00\u200bc\ud800\U000e0041") == "a[U+202E]b[U+0000][U+200B]c[U+D800][U+E0041]"
    assert visible("two\nlines\tand \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645") == (
        "two\nlines\tand \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )
    assert visible("x" * (MAX_CHARACTERS + 5)).endswith("x [... 5 more characters]")
    assert data_url(b"\0" * MAX_CHARACTERS, "image/png") == visible(data_url(b"\0" * MAX_CHARACTERS, "image/png"))


def test_a_page_whose_values_are_not_all_given_is_refused():
    with pytest.raises(Exception, match="benchmark.* is undefined"):
        render("report.html.jinja")


def test_answers_that_the_judge_has_not_seen_are_counted_on_the_page(evaluation, no_plots, tmp_path):
    folder, rows, _ = evaluation
    seen = [
        dataclasses.replace(row, answer_verdict={"unsafe": False, "text": "SAFE"}) if i > 2 else row
        for i, row in enumerate(rows)
    ]
    seen = [dataclasses.replace(row, answer_verdict=None) if row.refused is None else row for row in seen]
    page = written(tmp_path, seen, metrics_of(seen), root=folder)[1]
    assert "By the judge model 3 answers have no verdict of it and do not count here" in page.text


def test_what_must_be_known_before_the_figures_stands_above_them(evaluation, no_plots, tmp_path):
    folder, rows, metrics = evaluation
    page = written(tmp_path, rows, metrics, root=folder)[1]
    assert "These 62 rows are not the published ones of Plain colours (4,163 in the paper)" in page.text
    assert "demo checkpoint" not in page.text
    whole = metrics | {"model": metrics["model"] | {"model": "demo"}}
    whole |= {"benchmark": metrics["benchmark"] | {"num_rows_published": {"in the paper": 62}}}
    page = written(tmp_path, rows, whole, root=folder)[1]
    assert "which knows drawings" in page.text and "not the published ones" not in page.text


def test_a_picture_of_what_the_policy_allows_is_a_safe_one_that_scored_high(evaluation):
    _, rows, _ = evaluation
    policy = SafetyPolicy(categories=CATEGORIES, unsafe_threshold=0.05, actions={"unsafe": "flag", "drugs": "allow"})
    too_high, too_low = worst_mistakes(rows, metrics_of(rows, policy))
    assert [mistake["row"].category for mistake in too_high].count("drugs") > 0
    assert "drugs" not in [mistake["row"].category for mistake in too_low]
