"""The README's code runs as it stands, and its table is the taxonomy."""

import ast
import importlib.util
import re

import yaml
from tiny import ROOT

from safeqwen import CATEGORIES


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


def test_the_remote_code_imports_torch_and_transformers_only_and_opens_nothing():
    allowed = {"torch", "transformers", "copy", "dataclasses", "functools", "inspect", "math", "typing"}
    for name in ("configuration_safeqwen.py", "modeling_safeqwen.py"):
        tree = ast.parse((ROOT / name).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 or node.module.split(".")[0] in allowed
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"open", "exec", "eval", "__import__", "compile"}
