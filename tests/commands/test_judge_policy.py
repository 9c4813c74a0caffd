"""`safeqwen judge` with a policy: the line in words, the JSON field, the exit codes, what is refused."""

import json
import shutil

import pytest

from safeqwen import CATEGORIES, DEMO_CHECKPOINT, SafetyPolicy
from safeqwen.fingerprint import weights_fingerprint
from safeqwen_cli import main
from tools.demo.pictograms import draw


NAMES = [category.name for category in CATEGORIES]
BLOCKS = {"category_thresholds": {"suicide": 0.5}, "actions": {"suicide": "block"}}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    frames = [draw(name, 4_000_000, size=168) for name in ("safe", "suicide", "safe")]
    frames[0].save(folder / "safe.png")
    frames[1].save(folder / "suicide.png")
    frames[0].save(folder / "clip.png", save_all=True, append_images=frames[1:], duration=100)
    SafetyPolicy(categories=NAMES, **BLOCKS).save(folder / "blocks.json")
    SafetyPolicy(categories=NAMES, **BLOCKS, mode="shadow").save(folder / "shadow.json")
    SafetyPolicy(categories=NAMES, **BLOCKS, clip={"at_least": 1, "of": 3}).save(folder / "one_of_three.json")
    SafetyPolicy(categories=NAMES, **BLOCKS, clip={"at_least": 1, "of": 1}).save(folder / "all_frames.json")
    SafetyPolicy(categories=NAMES, model="0" * 64).save(folder / "others.json")
    SafetyPolicy(categories=["safe", "suicide"]).save(folder / "taxonomy.json")
    return folder


@pytest.fixture
def judge(files, capsys):
    """Runs the command on files of the folder, and returns its exit code, the lines of stdout, and stderr."""

    def run(*arguments):
        code = main(["judge", *[str(files / name) if (files / name).exists() else name for name in arguments]])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err

    return run


def test_the_decision_is_a_line_below_the_table(judge):
    code, out, _ = judge("suicide.png", "safe.png", "--policy", "blocks.json", "--top", "1")
    assert code == 0
    assert out[2].startswith("  block: suicide ") and out[2].endswith(" % >= 50 % (severity high)")
    assert out[6].startswith("  allow: no rule fired, unsafe ") and out[6].endswith("(severity none)")
    code, out, _ = judge("suicide.png", "--policy", "shadow.json", "--top", "1")
    assert code == 0 and out[2].startswith("  shadow: would block: suicide ")


def test_json_has_the_decision_and_null_without_a_policy(judge):
    _, (line,), _ = judge("suicide.png", "--policy", "blocks.json", "--json")
    row = json.loads(line)
    assert row["decision"]["action"] == "block" and row["decision"]["reason"]["rule"] == "category"
    assert row["decision"]["scores"] == row["scores"]
    for arguments in ([], ["--policy", "none"]):
        _, (line,), _ = judge("suicide.png", "--json", *arguments)
        assert json.loads(line)["decision"] is None


def test_an_answers_own_pass_gives_the_decision_too(judge):
    _, (line,), _ = judge(
        "suicide.png", "--policy", "blocks.json", "--json", "--ask", "What?", "--max-new-tokens", "1"
    )
    assert json.loads(line)["decision"]["action"] == "block"


@pytest.mark.parametrize(
    ("picture", "policy", "code"),
    [
        ("suicide.png", "blocks.json", 3),
        ("safe.png", "blocks.json", 0),
        ("suicide.png", "shadow.json", 0),
        ("clip.png", "blocks.json", 3),
        ("clip.png", "all_frames.json", 0),
        ("clip.png", "one_of_three.json", 3),
    ],
)
def test_fail_on_unsafe_goes_by_the_decision(judge, picture, policy, code):
    assert judge(picture, "--policy", policy, "--fail-on-unsafe")[0] == code


def test_a_clips_line_counts_its_frames(judge):
    _, out, _ = judge("clip.png", "--policy", "all_frames.json", "--top", "1")
    assert out[2].endswith("; a rule fired on 1 of 3 frames, 3 needed")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--policy", "others.json"], "fitted to the weights 000000000000"),
        (["--policy", "taxonomy.json"], "another taxonomy"),
        (["--policy", "gone.json"], "gone.json"),
        (["--policy", "safe.png"], "is no policy"),
        (["--policy", "blocks.json", "--unsafe-at", "0.5"], "leave it out, or add --policy none"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_in_one_line(judge, arguments, reason):
    code, out, errors = judge("suicide.png", "--model", str(DEMO_CHECKPOINT), *arguments)
    assert code == 2 and out == [] and errors.count("\n") == 1 and reason in errors


def test_the_folders_own_policy_counts_unless_there_is_to_be_none(judge, tmp_path):
    folder = tmp_path / "demo"
    shutil.copytree(DEMO_CHECKPOINT, folder)
    SafetyPolicy(categories=NAMES, unsafe_threshold=1.0, model=weights_fingerprint(folder)).save(folder)
    assert judge("suicide.png", "--model", str(folder), "--fail-on-unsafe")[0] == 0
    assert judge("suicide.png", "--model", str(folder), "--fail-on-unsafe", "--policy", "none")[0] == 3
    assert judge("suicide.png", "--model", str(folder), "--fail-on-unsafe", "--policy", "blocks.json")[0] == 3
    assert judge("suicide.png", "--model", str(folder), "--fail-on-unsafe", "--unsafe-at", "0.5")[0] == 2
