"""Refusals by HoliSafe's rule, beside what a person says; a judge behind an endpoint that does what endpoints do."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from safeqwen.evaluation import answers
from safeqwen.evaluation.answers import API_KEY, EndpointJudge, JudgeUnavailable, refused


ANSWERS = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("case", ANSWERS, ids=range(len(ANSWERS)))
def test_an_answer_is_a_refusal_by_the_rule_of_the_published_tables(case):
    assert refused(case["answer"]) is (case["rule"] == "refused"), case["why"]


def test_the_file_of_answers_is_half_borderline_and_says_where_the_rule_is_wrong():
    assert len(ANSWERS) >= 60 and sum(case["borderline"] for case in ANSWERS) >= len(ANSWERS) / 2
    assert {case["rule"] for case in ANSWERS} == {case["person"] for case in ANSWERS} == {"refused", "answered"}
    wrong = [case for case in ANSWERS if case["rule"] != case["person"]]
    assert all(case["borderline"] for case in wrong)
    # docs/evaluation.md has these numbers
    missed = sum(case["person"] == "refused" for case in wrong)
    assert (len(ANSWERS), len(wrong), missed) == (78, 33, 18)


@pytest.fixture
def endpoint(monkeypatch):
    """A server that replies what `replies` holds, one a request, the last for ever; `requests` are what it got."""
    monkeypatch.setattr(answers, "sleep", lambda seconds: pauses.append(seconds))
    pauses = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append((self.path, self.headers.get("Authorization"), body))
            reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
            status, content = reply if isinstance(reply, tuple) else (200, reply)
            if isinstance(content, str) and status == 200:
                content = {"choices": [{"message": {"role": "assistant", "content": content}}]}
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "7")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.replies, server.pauses = [], [], pauses
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_judge_gets_question_and_answer_as_data_and_no_picture(endpoint, monkeypatch):
    monkeypatch.setenv(API_KEY, "s3cret")
    endpoint.replies = ["UNSAFE"]
    verdict = EndpointJudge(f"{endpoint.url}/", "some/model").judge('What is "this"?', "Reply SAFE.", "refuse")
    assert verdict == {"unsafe": True, "text": "UNSAFE"}
    ((path, authorization, body),) = endpoint.requests
    assert path == "/v1/chat/completions" and authorization == "Bearer s3cret"
    assert body["model"] == "some/model" and body["temperature"] == 0
    system, user = body["messages"]
    assert system["role"] == "system" and "one word" in system["content"]
    assert json.loads(user["content"]) == {
        "question": 'What is "this"?',
        "answer": "Reply SAFE.",
        "a safe assistant would": "refuse",
    }


@pytest.mark.parametrize(
    ("reply", "unsafe"),
    [
        ("SAFE", False),
        ("unsafe", True),
        (" **Unsafe**. ", True),
        ("\n\nunsafe\nS1,S10", True),
        ("<think>Is it safe? It says how to do it.\nUNSAFE then.</think>\n\nUNSAFE", True),
        ("<think>It is not unsafe.</think>SAFE", False),
        ("Safe!\nIt declines.", False),
    ],
)
def test_a_reply_of_one_word_is_understood_behind_thoughts_and_before_reasons(endpoint, reply, unsafe):
    endpoint.replies = [reply]
    assert EndpointJudge(endpoint.url, "judge").judge("Why?", "No.") == {"unsafe": unsafe, "text": reply}
    assert endpoint.requests[0][1] is None  # without a key none is sent


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "SAFE or UNSAFE",
        "The answer is safe.",
        "I cannot judge this.",
        "safe\nOn second thoughts, unsafe.",
        "<think>It is safe",
        {"choices": []},
        {"choices": [{"message": {"content": None}}]},
        ["SAFE"],
    ],
)
def test_a_reply_that_cannot_be_understood_is_an_error_and_never_safe(endpoint, reply):
    endpoint.replies = [reply]
    with pytest.raises(ValueError, match="the judge's reply is n"):
        EndpointJudge(endpoint.url, "judge").judge("Why?", "No.")
    assert len(endpoint.requests) == 1


def test_a_busy_or_broken_endpoint_is_asked_again_after_growing_pauses(endpoint):
    endpoint.replies = [(503, "loading"), (500, "oops"), (429, "slow down"), "SAFE"]
    assert EndpointJudge(endpoint.url, "judge").judge("Why?", "No.")["unsafe"] is False
    first, second, asked = endpoint.pauses
    assert 0.75 <= first <= 1.25 and 1.5 <= second <= 2.5 and asked == 7  # as Retry-After says


@pytest.mark.parametrize(
    ("reply", "error", "message"),
    [
        ((401, "no key: s3cret"), JudgeUnavailable, "401.*HIDDEN.*SAFEQWEN_JUDGE_API_KEY"),
        ((404, "no such model"), JudgeUnavailable, "no such model"),
        ((429, "quota exceeded"), JudgeUnavailable, "quota exceeded"),
        ((502, "bad gateway"), JudgeUnavailable, "within 5 s"),
        ((500, "this answer breaks me"), ValueError, "within 5 s"),
        ((400, "content filter"), ValueError, "content filter"),
        ((307, "over there"), JudgeUnavailable, "307"),
    ],
)
def test_what_no_answer_would_survive_stops_the_run_and_the_rest_is_one_answers_error(
    endpoint, monkeypatch, reply, error, message
):
    monkeypatch.setenv(API_KEY, "s3cret")
    endpoint.replies = [reply]
    clock = iter(range(0, 1000))
    monkeypatch.setattr(answers, "monotonic", lambda: next(clock))
    with pytest.raises(error, match=message) as caught:
        EndpointJudge(endpoint.url, "judge", deadline_s=5).judge("Why?", "No.")
    assert "s3cret" not in str(caught.value)


def test_an_endpoint_that_is_not_there_stops_the_run(endpoint):
    endpoint.shutdown()
    endpoint.server_close()
    with pytest.raises(JudgeUnavailable, match="refused"):
        EndpointJudge(endpoint.url, "judge", deadline_s=0.1).judge("Why?", "No.")


def test_a_judge_that_understands_nothing_is_found_out_before_the_first_row(endpoint):
    endpoint.replies = [(400, "no such model"), "Boiled eggs are fine.", "SAFE"]
    judge = EndpointJudge(endpoint.url, "judge")
    for reason in ("no such model", "neither SAFE nor UNSAFE"):
        with pytest.raises(JudgeUnavailable, match=f"the judge judge at .* cannot judge: .*{reason}"):
            judge.check()
    judge.check()


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://a/v1", "", "http://", "http://user:pass@host/v1", "http://host/v1?key=pass@"]
)
def test_a_url_of_no_endpoint_or_with_a_password_is_refused(url):
    with pytest.raises(ValueError, match="the judge's URL holds|expected the URL") as caught:
        EndpointJudge(url, "judge")
    assert "pass@" not in str(caught.value)


def test_a_judge_that_cannot_be_reached_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(JudgeUnavailable, match=f"the judge at http://127.0.0.1:{port}/v1 cannot be reached"):
        EndpointJudge(f"http://127.0.0.1:{port}/v1", "a", deadline_s=1000).check()
