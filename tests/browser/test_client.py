"""What a program gets from the demo, and what it must not get."""

import json
import os
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file

from safeqwen.pictures.source import MAX_BYTES


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


@pytest.fixture
def picture(tmp_path, weapon):
    path = tmp_path / "weapon.png"
    path.write_bytes(weapon)
    return path


def uploads():
    return [path for path in Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*.png")]


def test_a_program_gets_verdict_and_answer(client, picture):
    result = client.predict(handle_file(picture), "What is this?", False, api_name="/judge")
    assert (result["image"], result["label"], result["error"]) == ("weapon.png", "weapon_related_violence", None)
    assert result["answer"] and result["note"] is None
    assert not uploads()


def test_a_program_may_stop_the_answer_of_a_flagged_picture(client, picture):
    result = client.predict(handle_file(picture), "What is this?", True, api_name="/judge")
    assert result["answer"] is None and "flagged" in result["note"] and result["unsafe"] > 0.5


def test_a_program_that_sends_no_picture_learns_that_nothing_was_judged(client):
    result = client.predict(None, "Who are you?", False, api_name="/judge")
    assert result["label"] is None and "nothing was judged" in result["error"]
    assert "Nothing was judged" in result["note"]


def test_the_page_is_served_to_this_computer_and_tells_nobody_else(address):
    assert address.startswith("http://127.0.0.1:")
    told = httpx.get(address).headers
    assert "default-src 'self'" in told["content-security-policy"] and told["referrer-policy"] == "same-origin"
    assert httpx.get(f"{address}config").json()["analytics_enabled"] is False


def test_an_upload_that_is_too_large_is_refused(address):
    upload = [("files", ("large.png", bytes(MAX_BYTES + 1)))]
    assert httpx.post(f"{address}gradio_api/upload", files=upload, timeout=60).status_code == 413
    assert not uploads()


def test_judge_is_the_only_endpoint(client):
    assert [*client.view_api(return_format="dict")["named_endpoints"]] == ["/judge"]


@pytest.mark.parametrize("path", ["/etc/hostname", "file:///etc/hostname", "https://example.com/a.png"])
def test_no_path_and_no_url_stands_for_an_upload(address, path):
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    call = f"{address}gradio_api/call/judge"
    event = httpx.post(call, json={"data": [file, "", False]}).json()["event_id"]
    told = httpx.get(f"{call}/{event}", timeout=30).text
    assert "event: error" in told and "event: complete" not in told
    assert ("got a link" in told) == path.startswith("https:")  # by us, before Gradio would fetch it


def test_of_two_visitors_who_send_the_same_file_at_once_the_second_learns_why_it_was_not_judged(address, weapon):
    upload = [("files", ("same.png", weapon))]
    (path,), (same,) = (httpx.post(f"{address}gradio_api/upload", files=upload).json() for _ in range(2))
    assert path == same
    errors = []
    for _ in range(2):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "same.png"}
        event = httpx.post(f"{address}gradio_api/call/judge", json={"data": [file, "", False]}).json()["event_id"]
        told = httpx.get(f"{address}gradio_api/call/judge/{event}", timeout=30).text
        assert "event: complete" in told
        errors.append(json.loads(told.split("data: ", 1)[1])[0]["error"])
    assert errors == [None, "same.png: the same file was sent twice at the same time; send it again"]


def test_a_question_that_is_too_long_is_not_cut_in_silence(client):
    result = client.predict(None, "w" * 4001, False, api_name="/judge")
    assert result["answer"] is None and "at most 4000 characters, not 4001" in result["note"]
