"""The code of README.md and docs/ runs as it stands there; links lead somewhere; the table is the taxonomy."""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap

import pytest
import yaml
from small_runs import run_here, write_config, write_rows
from tiny import ROOT

from safeqwen import CATEGORIES, DEMO_CHECKPOINT, SafetyPolicy
from tools.demo.holisafe_pictograms import write_benchmark
from tools.demo.own_taxonomy import PICTOGRAMS
from tools.demo.pictograms import draw


PAGES = ("README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")))
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
# What needs a network, several processes or a quarter of an hour.
NOT_RUN_HERE = ("pip install", "make ", "torchrun", "accelerate launch", "python -m benchmarks", "--push")
NOT_RUN_HERE += ("--judge-url", "lmms_eval", "safeqwen demo", "--engine ray")
ELSEWHERE = ("docs/pictograms.md", "docs/integrations.md")  # run with the README, and by tests/integrations
RELEASED = ("etri-vilab/SafeQwen2.5-VL-7B", "Qwen/Qwen2.5-VL-7B-Instruct")


def blocks_of(page):
    """`[(language, code), ...]` of a page, in its order."""
    blocks = re.findall(r"^( *)```(\w+)\n(.*?)^ *```$", TEXTS[page], re.DOTALL | re.MULTILINE)
    return [(language, textwrap.dedent(code)) for _, language, code in blocks]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the pages' code finds where it runs: the drawing, the repository's folders, twenty pictures to train on."""
    monkeypatch.chdir(tmp_path)
    draw("weapon_related_violence", 3_000_000, size=448).save(tmp_path / "picture.png")
    for name in ("configs", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "pictures").mkdir()
    rows = []
    for i in range(1, 21):
        drawn, label = [("alcohol", "our_logo"), ("safe", "safe"), ("gambling", "rival")][(i - 1) % 3]
        draw(drawn, 2_000_000 + i, pictograms=PICTOGRAMS).save(tmp_path / "pictures" / f"{i}.png")
        rows.append({"images": [f"pictures/{i}.png"], "safety_label": label})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def prepare(page, folder):
    """What a page takes as there: labelled pictures of one's own, a benchmark, a training run of HoliSafe's names."""
    commands = "".join(code for language, code in blocks_of(page) if language != "text")
    if "mine.jsonl" in commands:
        rows = []
        for i in range(140):
            harm = ("safe", "safe", "weapon_related_violence", "suicide")[i % 4]
            draw(harm, 2_500_000 + i, size=112).save(folder / "pictures" / f"mine{i}.png")
            rows.append({"image": f"pictures/mine{i}.png", "unsafe": harm != "safe"})
        (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if "--data holisafe-bench" in commands and "holisafe_pictograms" not in commands:
        write_benchmark(folder / "holisafe-bench", num_rows=100)
    if "--policy safety_policy.json" in commands and "safety_policy.json" not in commands.split("--policy")[0]:
        SafetyPolicy(categories=[category.name for category in CATEGORIES]).save(folder)
    if "--data corrections.jsonl" in commands:  # what a person saved from a page
        (folder / "corrections.jsonl").write_text(dict(blocks_of(page))["json"])
    if "runs/mine " in commands and "--output_dir runs/mine" not in commands:
        config = write_config(folder / "c.yaml", {"data": write_rows(folder / "small", 8, 2_600_000)}, max_steps=1)
        run_here(config, "--output_dir", folder / "runs" / "mine")


def run(command, folder):
    """What a command printed; `safeqwen` is this interpreter's."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = re.sub("^safeqwen ", f"{sys.executable} -m safeqwen ", command)
    command = re.sub("^python ", f"{sys.executable} ", command)
    command = command.replace("holisafe_pictograms", "holisafe_pictograms --rows 300")  # not all 1,000
    command = command.replace("-m safeqwen evaluate", "-m safeqwen evaluate --resamples 100")
    process = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=200
    )
    assert process.returncode == 0, f"{command}\n{process.stderr[-2000:]}"
    return process.stdout


def run_page(page, folder):
    """Runs the code of a page in its order, and returns what its last commands printed."""
    names, printed = {}, []
    prepare(page, folder)
    for language, code in blocks_of(page):
        if language == "python" and not re.search("gradio_client|import ray", code):  # run by tests of their own
            for released in RELEASED:  # what would be downloaded
                code = code.replace(f'"{released}"', repr(str(DEMO_CHECKPOINT)))
            exec(compile(code, page, "exec"), names)
        elif language == "bash":
            commands = code.replace("\\\n", " ").strip().splitlines()
            printed = [run(command, folder) for command in commands if not any(w in command for w in NOT_RUN_HERE)]
        elif language == "text":  # what the commands before it print
            assert code == "".join(printed).rstrip("\n") + "\n"
        elif language == "yaml":
            (folder / "my_categories.yaml").write_text(code)
        elif language == "json":
            assert all(json.loads(line)["images"] for line in code.splitlines())
    return printed


def test_the_readmes_code_runs_in_its_order_and_its_guard_passes_the_check_and_knows_the_logo(folder):
    rows = dict(blocks_of("README.md"))["json"].splitlines()
    assert [*map(json.loads, rows)] == [*map(json.loads, (folder / "rows.jsonl").read_text().splitlines()[:2])]
    _, checked, judged = run_page("README.md", folder)
    assert SafetyPolicy.load(folder / "safety_policy.json").fitted["unsafe_threshold"]["max_fpr"] == 0.05
    assert "FAILED" not in checked and checked.count("ok") >= 5
    assert float(re.search(r"our_logo +([\d.]+)%", judged)[1]) > 50


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if page not in ELSEWHERE])
def test_the_code_of_a_page_runs_in_its_order(page, folder):
    run_page(page, folder)


def test_the_usage_code_judges_and_answers_about_a_fresh_picture_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # undone afterwards, whatever folder the demo works in
    load_script("demo").main(["--category", "suicide", "--seed", "3000000", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / "picture.png").stat().st_size > 0
    verdict = re.search(r"([\d.]+)%  (\w+)\n(.+)", printed)
    assert verdict[2] == "suicide" and float(verdict[1]) > 50
    assert "suicide" in verdict[3].lower()


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository_lead_to_files_and_headings(page):
    anchors = {
        name: {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall("\n#+ (.+)", text)}
        for name, text in TEXTS.items()
    }
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]) if "://" not in link]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors[target.relative_to(ROOT).as_posix()], link


def test_every_page_is_in_the_list_of_pages():
    listed = re.findall(r"^\| \[[^]]+\]\((.+?)\)", TEXTS["docs/README.md"], re.MULTILINE)
    assert sorted(f"docs/{name}" for name in (*listed, "README.md")) == sorted(PAGES[1:])


def test_the_table_of_categories_is_the_taxonomy():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| ([\w -]+) \|$", TEXTS["docs/categories.md"], re.MULTILINE)
    assert rows == [(str(i), category.name, category.group) for i, category in enumerate(CATEGORIES)]


def test_the_tests_that_compatibility_names_are_there():
    names = set(re.findall(r"`([\w/]+/test_\w+\.py)`", TEXTS["docs/compatibility.md"]))
    assert len(names) >= 10
    assert [name for name in sorted(names) if not (ROOT / "tests" / name).exists()] == []


def test_the_front_matter_is_a_model_cards():
    front_matter = yaml.safe_load(TEXTS["README.md"].split("---\n")[1])
    assert front_matter["license"] == "apache-2.0"
    assert front_matter["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert front_matter["library_name"] == "transformers"
    assert front_matter["pipeline_tag"] == "image-text-to-text"


def test_the_readmes_figures_of_the_demo_are_its_checkpoints():
    figures = json.loads((DEMO_CHECKPOINT / "figures.json").read_text(encoding="utf-8"))
    told = re.findall(r"([\d.]+) % of\s([\d,]+)", TEXTS["README.md"].split("\n## ")[0])
    known = [
        *((figures[name], "top1") for name in ("verdict", "verdict_held_out_style")),
        (figures["scenes"]["verdict"], "top1"),
        (figures["answer"], "refuses_or_helps_rightly"),
    ]
    assert told == [(f"{100 * figure[key]:.1f}", f"{figure['n']:,}") for figure, key in known]


def test_the_table_of_the_demos_figures_is_that_of_its_metrics():
    metrics = json.loads((ROOT / "docs" / "pictograms" / "metrics.json").read_text(encoding="utf-8"))
    rows = re.findall(
        r"^\| .+? \| `([\w.]+)` \| (.+) \| (.+) \| ([\d,]+) \|$", TEXTS["docs/pictograms.md"], re.MULTILINE
    )
    assert len(rows) == 20
    for key, value, interval, n in rows:
        figure = functools.reduce(dict.__getitem__, key.split("."), metrics)
        assert value == f"{figure['value']:.3f}" and n == f"{figure['n']:,}"
        assert interval == f"{figure['low']:.3f} to {figure['high']:.3f}"


def test_the_commands_of_the_demos_figures_are_the_readmes():
    first, second = dict(blocks_of("docs/pictograms.md"))["bash"].splitlines()
    readme = "".join(code for language, code in blocks_of("README.md") if language == "bash")
    assert first in readme and second.replace(" --batch-size 8", "") in readme  # where they are run
