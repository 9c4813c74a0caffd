"""What records are made with: the commit."""

import re
import subprocess

from safeqwen import provenance


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
