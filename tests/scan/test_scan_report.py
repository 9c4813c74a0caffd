"""The page of a scan: what it counts, what it shows of each picture, and what it refuses."""

import base64
import hashlib
import json
import os
import re
import tarfile
from pathlib import Path

import pytest
from scan_reports import CATEGORIES, POLICY, Page, picture, row, write

import safeqwen_cli
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.scan import gallery
from safeqwen.scan.report import make_plots, write_report
from safeqwen.scan.tally import Tally


SUICIDE, LOGO = (0.25, 0.5, 0.25), (0.125, 0.125, 0.75)
EVIL = "<script>alert(1)</script>\"'</article>\u202egnp.png"


@pytest.fixture(autouse=True)
def no_plots(monkeypatch, request):
    """Drawing takes a second a page, and what is drawn has tests of its own."""
    if "plot" not in request.node.name:
        monkeypatch.setattr("safeqwen.scan.report.make_plots", lambda *args: [])


def test_counts_are_of_every_row_by_category_decision_and_severity(tmp_path):
    # "suicide" 0.5 >= 0.25 blocks; 1 - p(safe) is 0.75 and 0.875 (severity high), and 0.25 (low).
    rows = [row("a", SUICIDE), row("b", SUICIDE), row("c", LOGO), row("d"), row("e", error="e: is empty")]
    rows = [
        row(one["id"], policy=POLICY, error=one["error"], probs=p)
        for one, p in zip(rows, (SUICIDE, SUICIDE, LOGO, (0.75, 0.125, 0.125), ()))
    ]
    page = Page(tmp_path, rows)
    assert page.cells("Pictures by likeliest category and decision") == [
        ["suicide", "0", "0", "2", "2"],
        ["our logo", "0", "1", "0", "1"],
        ["safe", "1", "0", "0", "1"],
    ]
    assert page.cells("Pictures by severity and decision") == [
        ["none", "0", "0", "0", "0"],
        ["low", "1", "0", "0", "1"],
        ["medium", "0", "0", "0", "0"],
        ["high", "0", "1", "2", "3"],
    ]
    assert page.cells("Why there is no verdict") == [["is empty", "1"]]
    assert page.made | {"thumbnails": 0, "missing": 0} == {
        **{"rows": 5, "flagged": 3, "errors": 1, "shown": 5},
        **{"thumbnails": 0, "missing": 0, "heatmaps": 0},
    }
    assert "3 of 4 that were judged" in page.text


def test_without_a_policy_a_picture_is_flagged_from_one_half(tmp_path):
    page = Page(tmp_path, [row("a", (0.5, 0.5, 0)), row("b", (0.5625, 0.4375, 0))])
    assert page.cells("Pictures by likeliest category and decision") == [["safe", "1", "1", "2"]]
    assert page.entries["a"]["action"] == "flag" and page.entries["b"]["action"] == "allow"
    assert page.data["thresholds"] == {"unsafe": 0.5} and "There is no policy" in page.text


def test_an_error_is_never_shown_as_a_verdict(tmp_path):
    page = Page(tmp_path, [row("a", error="a: is empty"), row("b", error="b: is empty")])
    assert page.entries["a"] == {"name": "a", "error": "a: is empty", "fixed": "it was not judged"}
    assert "every row is an error. Nothing here says that any of them is safe" in page.text
    assert page.made["flagged"] == 0 and "Nothing was judged, so there is nothing to count" in page.text
    assert page.cells("Why there is no verdict") == [["is empty", "2"]]


def test_pages_of_no_row_and_of_one(tmp_path):
    page = Page(tmp_path, [])
    assert "The scan found no pictures" in page.text and page.data["pictures"] == []
    page = Page(tmp_path, [row("a")])
    assert page.made["rows"] == 1 and len(page.data["pictures"]) == 1


@pytest.mark.parametrize(
    "rows, reason",
    [
        ([row("a"), row("b", model="n" * 64)], "row 2 was made with another model (nnnnnnnnnnnn...)"),
        ([row("a"), row("b", policy=POLICY)], "row 2 was made with another policy"),
        ([row("a"), row("a")], "row 2 is about 'a', which came before: give each file of rows once"),
        ([row("a"), row("b", scores={"safe": 1.0})], "row 2 has other categories than the rows before it"),
        ([row("a", score=float("nan"))], "row 1 holds nan for a probability in [0, 1]"),
        ([row("a", unsafe=1.5)], "row 1 holds 1.5 for a probability in [0, 1]"),
        ([row("a", policy=POLICY, decision=None)], "row 1 names a policy, but has no decision"),
        ([row("a", label="gun")], "row 1 has the label 'gun', which is none of its categories"),
    ],
)
def test_rows_that_do_not_go_together_or_make_no_sense_are_refused(tmp_path, rows, reason):
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=re.escape(reason)):
        write_report([path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_half_written_file_is_refused_with_its_line(tmp_path):
    path = write(tmp_path / "rows.jsonl", [row("a"), row("b")])
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match="line 2 is no row"):
        write_report([path], tmp_path / "report.html")


def test_groups_of_two_files_stay_apart_and_those_that_disagree_are_counted(tmp_path):
    near = {"group": 1, "group_disagrees": True}
    one = write(tmp_path / "one.jsonl", [row("a", SUICIDE, **near), row("b", **near)])
    other = write(
        tmp_path / "other.jsonl", [row("c", group=1, group_disagrees=False), row("d", group=1, group_disagrees=False)]
    )
    page = Page(tmp_path, [one, other])
    assert page.data["groups"] == {"1": [2, True], "2": [2, False]}
    assert page.entries["c"]["group"] == 2 and "2 groups; the verdicts of 1 disagree" in page.text


def test_the_page_says_that_pictures_of_different_files_were_not_compared(tmp_path):
    said = "Each of the 2 files of rows has groups of its own: pictures of different files were not compared."
    for group in (1, None):
        rows = [row("a", group=group, group_disagrees=False), row("b", group=group, group_disagrees=False)]
        one = write(tmp_path / "one.jsonl", rows)
        assert "not compared" not in Page(tmp_path, [one]).text
        text = Page(tmp_path, [one, write(tmp_path / "other.jsonl", [row("c")])]).text
        assert said in text and ("No two of the pictures of one file are near-identical." in text) == (group is None)


def test_names_and_reasons_cannot_command_the_page_nor_hide(tmp_path):
    plain = Page(tmp_path, [row("a"), row("b", error="x: y")])
    page = Page(tmp_path, [row(EVIL), row(EVIL + "2", error=f"{EVIL}2: {EVIL}")], num_thumbnails=0)
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    shown = EVIL.replace("\u202e", "[U+202E]")
    assert {*page.entries} == {shown, shown + "2"} and "\u202e" not in page.html
    assert page.entries[shown]["path"] == EVIL  # as the file is called: training must find it


def test_the_page_asks_for_nothing_and_runs_one_script(tmp_path):
    page = Page(tmp_path, [row("https://example.org/a.png", SUICIDE), row("b")])
    policy = next(fields["content"] for tag, fields in page.elements if fields.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    for _, fields in page.elements:
        assert all((fields.get(name) or "data:").startswith(("data:", "#")) for name in ("src", "href", "srcset"))
        assert "style" not in fields and not any(name.startswith("on") for name in fields)


def test_thumbnails_are_of_the_picture_that_was_judged_and_of_no_other(tmp_path):
    same, changed = picture(tmp_path / "same.png"), picture(tmp_path / "changed.png")
    rows = [row("same.png", data=same), row("changed.png", data=changed), row("gone.png")]
    picture(tmp_path / "changed.png", "blue")
    page = Page(tmp_path, rows)
    assert page.entries["same.png"]["thumbnail"].startswith("data:image/webp;base64,")
    assert page.entries["same.png"]["path"] == "same.png"
    assert page.entries["changed.png"]["missing"] == "the picture has changed since it was judged"
    assert "gone.png" in page.entries["gone.png"]["missing"]
    for name in ("changed.png", "gone.png"):
        assert "thumbnail" not in page.entries[name] and "path" not in page.entries[name]
    assert page.made["thumbnails"] == 1 and page.made["missing"] == 2


def test_members_of_an_archive_have_a_picture_but_are_no_rows_to_train_on(tmp_path):
    data = picture(tmp_path / "a.png")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    page = Page(tmp_path, [row("shard.tar::a.png", data=data), row("shard.tar::b.png"), row("no.tar::a.png")])
    entry = page.entries["shard.tar::a.png"]
    assert "thumbnail" in entry and "path" not in entry and "unpack" in entry["fixed"]
    assert page.entries["shard.tar::b.png"]["missing"] == "the picture is not there any more"
    assert page.entries["no.tar::a.png"]["missing"] == "the picture is not there any more"


def test_a_url_is_fetched_only_if_asked_for(tmp_path, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("it was fetched")

    monkeypatch.setattr("safeqwen.scan.sources.read_text", never)
    url = "https://example.org/a.png"
    page = Page(tmp_path, [row(url)])
    assert page.entries[url]["missing"] == gallery.NOT_FETCHED and page.entries[url]["path"] == url
    data = picture(tmp_path / "a.png")
    monkeypatch.setattr("safeqwen.scan.sources.read_text", lambda *args, **kwargs: (data, None))
    assert "thumbnail" in Page(tmp_path, [row(url, data=data)], fetch=True).entries[url]


@pytest.mark.skipif(os.name == "nt" or not os.fsencode("\udcff") == b"\xff", reason="names are UTF-8 here")
def test_a_name_that_is_no_utf8_is_shown_and_can_be_trained_on(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"\xff.png")
    with open(path, "wb") as file:
        file.write(picture(tmp_path / "a.png"))
    uri = Path(os.fsdecode(path)).as_uri()
    page = Page(tmp_path, [row(uri, data=(tmp_path / "a.png").read_bytes())])
    (entry,) = page.entries.values()
    assert "thumbnail" in entry and os.fsencode(json.loads(json.dumps(entry["path"]))) == path


def test_the_gallery_is_bounded_and_holds_what_is_most_worth_a_look(tmp_path):
    rows = [row(f"safe-{i}") for i in range(5)]
    rows += [row("flagged", SUICIDE), row("error", error="error: x"), row("most", LOGO)]
    rows += [row("at odds", (1, 0, 0), group=1, group_disagrees=True)]
    page = Page(tmp_path, rows, num_pictures=4)
    assert [*page.entries] == ["most", "flagged", "at odds", "error"]
    assert page.made["rows"] == 9 and "The gallery holds 4 of 9 rows" in page.text


def test_thresholds_come_from_the_rules_that_fired_or_from_the_policy(tmp_path):
    page = Page(tmp_path, [row("a", SUICIDE, policy=POLICY)])
    assert page.data["thresholds"] == {"unsafe": 0.5} and page.data["bounds"] == [None, 0.25, None]
    page = Page(tmp_path, [row("a", (1, 0, 0), policy=POLICY)])
    assert page.data["thresholds"] == {} and page.data["bounds"] == [None, None, None]
    page = Page(tmp_path, [row("a", (1, 0, 0), policy=POLICY)], policy=POLICY)
    assert page.data["thresholds"] == {"unsafe": 0.5} and page.data["bounds"] == [None, 0.25, None]
    other = SafetyPolicy(categories=CATEGORIES, unsafe_threshold=0.9)
    with pytest.raises(ValueError, match="decided by another policy"):
        Page(tmp_path, [row("a", policy=POLICY)], policy=other)


def test_plots_show_every_verdict_once_and_the_thresholds(tmp_path):
    tally = Tally()
    for number, probs in enumerate([SUICIDE, LOGO, (0.75, 0.125, 0.125), (0, 0.5, 0.5)]):
        tally.add(row(f"{number}", probs, policy=POLICY), "rows.jsonl")
    tally.add(row("e", policy=POLICY, error="e: x"), "rows.jsonl")
    scores, categories = make_plots(tally, {"unsafe": 0.5, "suicide": 0.25})
    allow, flag, block = scores.figure("light").axes
    counts = [axes.patches[0].get_data().values for axes in (allow, flag, block)]
    # 1 - p(safe) of 0.25 is allowed, 0.875 is flagged, 0.75 and 1 are blocked; bins are 0.05 wide.
    assert [[*values.nonzero()[0]] for values in counts] == [[5], [17], [15, 19]] and sum(map(sum, counts)) == 4
    assert all(axes.lines[0].get_xdata()[0] == 0.5 for axes in (allow, flag, block))
    suicide, logo = categories.figure("dark").axes
    assert suicide.lines[0].get_xdata()[0] == 0.25 and not logo.lines
    # suicide: 0.5, 0.125, 0.125, 0.5
    assert suicide.patches[0].get_data().values[[2, 10]].tolist() == [2, 2]
    assert "allow 1, flag 1, block 2" in scores.description and "suicide 0.25" in categories.description


def test_plots_are_on_the_page_for_light_and_dark(tmp_path):
    page = Page(tmp_path, [row("a")])
    assert "Scores by category" in page.html and sum(tag == "source" for tag, _ in page.elements) == 2


def test_a_picture_of_several_views_shows_the_least_safe_one(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(gallery, "thumbnail", lambda data, view, *size: asked.append(view) or "data:,")
    data = picture(tmp_path / "a.png")
    Page(tmp_path, [row("a.png", [(0.75, 0.25, 0), (0.25, 0.5, 0.25), (0.5, 0.5, 0)], data=data)])
    assert asked == [1]


def test_the_command_makes_heat_maps_of_flagged_pictures_by_the_model_of_the_scan_alone(tmp_path, capsys, monkeypatch):
    from scanning import drawings

    monkeypatch.chdir(tmp_path)
    drawings(Path("pictures"), 5)
    assert safeqwen_cli.main(["scan", "pictures", "--out", "rows.jsonl", "--quiet"]) == 0
    words = ["report", "rows.jsonl", "--out", "report.html", "--heatmaps", "2", "--quiet"]
    assert safeqwen_cli.main(words) == 0
    assert "2 with a heat map" in capsys.readouterr().out
    data = json.loads(re.search(r'id="data">(.*?)</script>', Path("report.html").read_text())[1])
    mapped = [entry for entry in data["pictures"] if "map" in entry]
    assert len(mapped) == 2 and all(entry["action"] == "flag" and "comes from" in entry["mapped"] for entry in mapped)
    text = re.sub(
        r'"model_fingerprint": "[0-9a-f]+"', f'"model_fingerprint": "{"f" * 64}"', Path("rows.jsonl").read_text()
    )
    Path("rows.jsonl").write_text(text)
    assert safeqwen_cli.main(words) == 2
    assert "a heat map would explain another verdict" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, reason",
    [
        (["--out", "report.jsonl"], "--out must end in .html"),
        (["--out", "no/report.html"], "there is no folder no"),
        (["--out", "report.html"], "there is no rows.jsonl"),
        (["--out", "report.html", "--heatmaps", "3", "--thumbnails", "2"], "at least as many"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, capsys, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    assert safeqwen_cli.main(["report", "rows.jsonl", *words]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
