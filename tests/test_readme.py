"""The README's code runs as it stands, and its table is the taxonomy."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap

import yaml
from tiny import ROOT

from safeqwen import CATEGORIES
from tools.demo.own_taxonomy import PICTOGRAMS
from tools.demo.pictograms import draw


README = (ROOT / "README.md").read_text(encoding="utf-8")


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_usage_code_judges_and_answers_about_a_fresh_picture_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # undone afterwards, whatever folder the demo works in
    load_script("demo").main(["--category", "suicide", "--seed", "3000000", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert (tmp_path / "picture.png").stat().st_size > 0
    verdict = re.search(r"([\d.]+)%  (\w+)\n(.+)", printed)
    assert verdict[2] == "suicide" and float(verdict[1]) > 50
    assert "suicide" in verdict[3].lower()


def test_fine_tuning_goes_as_it_is_told_with_twenty_pictures(tmp_path):
    """The commands as they stand, run where the files are; only `safeqwen` is this interpreter's."""
    section = README.split("\n## Fine-tune it\n")[1].split("\n## ")[0]
    (categories,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    (tmp_path / "my_categories.yaml").write_text(textwrap.dedent(categories))
    first_row = json.loads(re.search(r"```json\n *(.*?)\n", section)[1])
    (tmp_path / "pictures").mkdir()
    rows = []
    for i in range(1, 21):
        drawn, label = [("alcohol", "our_logo"), ("safe", "safe"), ("gambling", "rival")][(i - 1) % 3]
        draw(drawn, 2_000_000 + i, pictograms=PICTOGRAMS).save(tmp_path / "pictures" / f"{i}.png")
        rows.append({"images": [f"pictures/{i}.png"], "safety_label": label})
    assert rows[0] == first_row
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "configs").symlink_to(ROOT / "configs")

    train, finish = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[:2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    printed = []
    for command in [train, *finish.strip().splitlines()]:
        command = command.strip().replace("\\\n", " ").replace("safeqwen ", f"{sys.executable} -m safeqwen ", 1)
        process = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert process.returncode == 0, process.stderr[-2000:]
        printed.append(process.stdout)
    assert "FAILED" not in printed[2] and printed[2].count("ok") >= 5
    assert float(re.search(r"our_logo +([\d.]+)%", printed[3])[1]) > 50


def test_every_python_block_is_python():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        ast.parse(block)


def test_the_table_is_the_taxonomy():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| ([\w -]+) \|$", README, re.MULTILINE)
    assert rows == [(str(i), category.name, category.group) for i, category in enumerate(CATEGORIES)]


def test_the_front_matter_is_a_model_cards():
    front_matter = yaml.safe_load(README.split("---\n")[1])
    assert front_matter["license"] == "apache-2.0"
    assert front_matter["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert front_matter["library_name"] == "transformers"
    assert front_matter["pipeline_tag"] == "image-text-to-text"
