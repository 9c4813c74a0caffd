"""What records are made with: the command, the commit."""

import re
import subprocess

import pytest

from safeqwen import provenance


@pytest.mark.parametrize(
    "words, recorded",
    [
        (["--token", "hf_1", "a.png"], "--token HIDDEN a.png"),
        (["--token=hf_1", "a.png"], "--token=HIDDEN a.png"),
        (["--tok", "hf_1", "--to=hf_2"], "--tok HIDDEN --to=HIDDEN"),  # argparse takes them for --token
        (["--token", "hf_1", "--token", "hf 2"], "--token HIDDEN --token HIDDEN"),  # the last one counts
        (["--hub_token", "hf_1", "--hub-token=hf_2"], "--hub_token HIDDEN --hub-token=HIDDEN"),
        (["--timeout", "5", "--report_to", "none"], "--timeout 5 --report_to none"),
        (["HTTPS://me:secret@a.b/my c.png?sig=secret#x"], "'HTTPS://a.b/my c.png'"),
        (["--url=http://a.b/c?key=secret", "s3://a/b?region=c", "in/a?b.png"],
         "--url=http://a.b/c 's3://a/b?region=c' 'in/a?b.png'"),
        (["http://[a?key=secret", "b.png"], "http://... b.png"),  # no address
    ],
)  # fmt: skip
def test_a_recorded_command_holds_no_token_and_no_key_of_a_url(words, recorded):
    assert provenance.command_line(["safeqwen", *words]) == f"safeqwen {recorded}"


def test_the_commit_that_is_recorded_is_that_of_our_own_repository_and_says_if_files_were_changed(
    tmp_path, monkeypatch
):
    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    file = tmp_path / "training.py"
    file.touch()
    (tmp_path / "theirs.py").touch()
    monkeypatch.setattr(provenance, "__file__", str(file))
    git("init")
    git("add", "theirs.py")
    git("commit", "-m", "theirs")
    assert provenance.git_commit() is None
    git("add", "training.py")
    git("commit", "-m", "ours")
    assert re.fullmatch("[0-9a-f]{40}", provenance.git_commit())
    file.write_text("changed")
    assert re.fullmatch("[0-9a-f]{40}-dirty", provenance.git_commit())
