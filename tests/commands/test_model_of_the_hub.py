"""`--model` that is no folder here: what is refused at once, and how often the Hub is asked before a refusal."""

import json
import os
import socketserver
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from small_runs import ENVIRONMENT, write_config, write_rows

from safeqwen.commands import model
from safeqwen.scan.rows import FIELDS
from safeqwen_cli import main
from tools.demo.pictograms import draw


RUN_ALL = "import json, sys; from safeqwen_cli import main; print([main(a) for a in json.loads(sys.argv[1])])"
COMMANDS = ("judge", "explain", "demo", "scan", "report", "evaluate", "train")


@pytest.fixture
def arguments(tmp_path):
    """Command -> its words (`list[str]`), complete but for the model's name, which comes last."""
    draw("safe", 4_000_001, size=112).save(tmp_path / "a.png")
    row = {**dict.fromkeys(FIELDS), "id": "a.png", "error": "gone", "model_fingerprint": "m" * 64}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    config = write_config(tmp_path / "c.yaml", {"data": write_rows(tmp_path / "rows", 4, 0)}, output_dir="run")
    (tmp_path / "benchmark.jsonl").write_text(json.dumps({"image": "a.png", "unsafe": False}))
    found = {
        "judge": ["a.png"],
        "explain": ["a.png", "--json"],
        "demo": [],
        "scan": ["a.png", "--out", "scan.jsonl"],
        "report": ["rows.jsonl", "--out", "report.html", "--heatmaps", "1"],
        "evaluate": ["--benchmark", "jsonl", "--data", "benchmark.jsonl", "--out", "evaluated"],
        "train": [str(config)],
    }
    return {command: [command, *found[command], "--model"] for command in COMMANDS}


class Broken(socketserver.StreamRequestHandler):
    """A Hub that hangs up: the Hub's library would try again."""

    def handle(self):
        self.server.asked.append(self.rfile.readline().decode().split()[1])


def test_where_no_hub_answers_every_command_asks_once_and_says_so(arguments, tmp_path):
    """The Hub's own library would try each of nine files six times, for three minutes and more."""
    words = [[*arguments[command], f"no-{command}"] for command in COMMANDS]
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Broken) as hub:
        hub.asked = []
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        environment = {
            **ENVIRONMENT,
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
            "HF_HOME": str(tmp_path / "hub"),
        }
        done = subprocess.run(
            [sys.executable, "-c", RUN_ALL, json.dumps(words)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        hub.shutdown()
    assert done.stdout == f"{[2] * len(COMMANDS)}\n"
    assert [path for path in hub.asked if "resolve" in path] == [f"/no-{c}/resolve/main/config.json" for c in COMMANDS]
    said = [line for line in done.stderr.splitlines() if line.startswith("safeqwen")]
    for command, asks, refusal in zip(COMMANDS, said[::2], said[1::2], strict=True):
        assert asks == f"safeqwen: there is no folder no-{command}: the Hub is asked for it"
        assert f"the model no-{command} could not be loaded" in refusal and "the Hub cannot be reached" in refusal
    assert "Retrying" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["./my-modle", "../models/x", "models/x/y", "/models/x", "~/models", "a model"])
def test_what_can_be_no_repositorys_name_is_refused_without_asking(arguments, name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model, "get_session", lambda: pytest.fail("the Hub was asked"))
    for command in COMMANDS:
        assert main([*arguments[command], name]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(
            f"the model {name} could not be loaded: there is no such folder, and the name can be no repository's on "
            "the Hub: check the path"
        )


def test_for_a_model_that_was_downloaded_before_the_hub_is_not_asked(tmp_path, monkeypatch, capsys):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)

    def fail():
        raise OSError("no route to host")

    monkeypatch.setattr(model.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model, "get_session", fail)
    for revision in (None, commit):
        model.ask_hub("someone/tiny", revision, cache_dir=str(tmp_path))
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match="the Hub cannot be reached: no route to host"):
        model.ask_hub("someone/else", cache_dir=str(tmp_path))


def test_a_hub_that_answers_is_left_to_its_own_library(monkeypatch, capsys):
    """Which tries again if the Hub is busy, and says of a name what is wrong with it."""

    class Busy:
        def head(self, *_, **__):
            return SimpleNamespace(status_code=429)

    monkeypatch.setattr(model.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model, "get_session", Busy)
    assert model.loaded("someone/busy", lambda: "a model") == "a model"
    assert capsys.readouterr().err == "safeqwen: there is no folder someone/busy: the Hub is asked for it\n"
    assert model.loaded("someone/busy", lambda: "a model") == "a model"
    assert not capsys.readouterr().err  # once is enough


def test_offline_a_name_is_looked_up_in_the_cache_alone(monkeypatch, capsys):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setattr(model, "get_session", lambda: pytest.fail("the Hub was asked"))
    model.ask_hub("someone/nothing")
    assert not capsys.readouterr().err
