"""The model card of an exported run, and what of a run's record may leave the machine."""

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.repocard_data import eval_results_to_model_index

from safeqwen.provenance import without_folders
from safeqwen.publishing.evaluations import eval_results, results_section


FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)

CARD = """\
---
{front_matter}---

# {title}

{what}
{demo_warning}
## Use it

```python
{usage}
question = {{"type": "text", "text": "What is in this picture?"}}
messages = [{{"role": "user", "content": [{{"type": "image", "image": "picture.png"}}, question]}}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device)
output = model.generate(**inputs, do_safety=True, return_dict_in_generate=True, max_new_tokens=64)
print(dict(zip(model.config.safety_categories, output.img_safety_probs[0].tolist())))
answer = output.sequences[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True)[0])
```

The verdict comes from the pass that starts the answer; `model.guard(**inputs)` gives it alone. It is an
estimate. {threshold}

## Categories

{categories}

## Training

{recipe}

```bash
{command}
```

with these settings:

```yaml
{config}```

## Data

{data}

## Results

{results}
{evaluation}
## Versions

{versions}

The whole record is in `safeqwen_run.json`.

## Limits and misuse

- The guard judges pictures, not words, and knows only the kinds of picture that it was trained on. The categories
  with the fewest rows: {fewest}.
- The results hold for data like that behind them. Measure on your own before you rely on a verdict, keep a human in
  the loop where a mistake hurts, and do not let it decide alone about people.
- It can be fooled, by pictures made for that and by chance.
- A guard is also a map of what it flags. Using it to search for harmful pictures, or to tune pictures past moderation,
  is misuse.

## Licence

{licence}
"""
DEMO_WARNING = """
**It starts from SafeQwen's demo checkpoint: it knows drawn pictograms, not photographs, and is not for moderation.**
"""
LOAD_MODEL = """\
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(
    {name},
    trust_remote_code=True,
    dtype=torch.float32,  # on a GPU torch.bfloat16
)
processor = AutoProcessor.from_pretrained({name})
"""
LOAD_ADAPTER = """\
import torch
from peft import PeftModel
from safeqwen.loading import load_base  # of the package safeqwen
from transformers import AutoProcessor

base = load_base(
    {base},{revision}
    safety_categories={categories},
    dtype=torch.float32,  # on a GPU torch.bfloat16
)
model = PeftModel.from_pretrained(base, {name}).eval()
processor = AutoProcessor.from_pretrained({name})
"""
NO_POLICY = "No threshold comes with it: choose one on your own data."
POLICY = """\
What to do about it stands in `safety_policy.json`: `safeqwen.load` puts it at
`model.safety_policy`, and `safeqwen judge` applies it. See whether its thresholds suit your own data."""
RECIPES = {
    "lora": "LoRA on the language model, and the guard,",
    "full": "All weights, and the guard,",
    "guard_only": "The guard alone, on frozen weights,",
}


def front_matter(text):
    """Returns the front matter of a model card as a dictionary.

    Raises:
        ValueError: if there is none, or it is not YAML with names and values.
    """
    found = FRONT_MATTER.search(text)
    if found is None:
        raise ValueError("there is no front matter: no YAML between two lines of ---")
    try:
        fields = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ValueError(f"the front matter is not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError("the front matter holds no names and values")
    return fields


def model_card(record, name, dtype, evaluations=(), policy=None):
    """Returns the README.md (`str`) of an exported run, made of the run's record and the base's own card alone.

    Args:
        record (`dict`): run.json.
        name (`str`): what the card's code loads: a folder's name, or a repository's.
        dtype (`str` or `None`): of the weights; `None` for an adapter alone.
        evaluations (`list[dict]`, *optional*): metrics.json of evaluations of these weights.
        policy ([`SafetyPolicy`], *optional*): that is published with them.
    """
    of_base, is_local = _front_matter_of(record["base_model"], record["base_revision"])
    # By its card, which travels with it and with what is made of it.
    is_demo = {"safety", "guard", "demo"} <= {*(of_base.get("tags") or ())}
    record, evaluations = without_folders(record), without_folders([*evaluations])
    tuning, base, revision = record["tuning"], record["base_model"], record["base_revision"]
    categories, metrics = record["safety_categories"], record["metrics"]
    data = {split: rows for split, rows in record["data"].items() if rows}
    licence = {key: of_base[key] for key in ("license", "license_name", "license_link") if key in of_base}

    counts = {split: rows["rows_by_label"] for split, rows in data.items()}
    by_count = sorted(categories, key=lambda category: counts["train"].get(category, 0))
    fewest = [f"{_cell(category)} ({counts['train'].get(category, 0)} rows)" for category in by_count[:3]]
    tags = ["safety", "guard", "content-moderation", "qwen2_5_vl", "custom_code" if dtype else "lora"]
    fields = {
        "license": "unknown",
        **licence,
        # A local folder's name would be taken for a repository's.
        **({} if is_local else {"base_model": base, **({} if dtype else {"base_model_relation": "adapter"})}),
        "library_name": "transformers" if dtype else "peft",
        "pipeline_tag": "image-text-to-text",
        "tags": tags + ["demo"] * is_demo,
    }
    title = name.rsplit("/", 1)[-1]
    if evaluations:
        fields["model-index"] = eval_results_to_model_index(title, eval_results(evaluations))
    return CARD.format(
        front_matter=yaml.safe_dump(fields, sort_keys=False, allow_unicode=True),
        title=title,
        what=(f"Weights in {dtype}: " if dtype else f"An adapter for `{base}`, guard included: ")
        + "Qwen2.5-VL that answers questions about a picture and, in the same pass, says which of "
        f"{len(categories)} categories the picture belongs to.",
        demo_warning=DEMO_WARNING if is_demo else "",
        usage=LOAD_MODEL.format(name=_quoted(name))
        if dtype
        else LOAD_ADAPTER.format(
            name=_quoted(name),
            base=_quoted(base),
            revision=f"\n    revision={_quoted(revision)}," if revision else "",
            categories=_quoted(categories),
        ),
        threshold=NO_POLICY if policy is None else POLICY,
        categories=_table(
            ["id", "name", *(f"{split} rows" for split in data)],
            [[i, f"`{name}`", *(counts[s].get(name, 0) for s in data)] for i, name in enumerate(categories)],
        ),
        recipe=f"{RECIPES[tuning]} trained from `{base}`{f' at `{revision}`' if revision else ''} by SafeQwen "
        f"{record['safeqwen']}{' (commit `' + record['git_commit'] + '`)' if record['git_commit'] else ''}:",
        command=record["command"],
        config=yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True),
        data=_table(
            ["", *data],
            [
                ["files", *(", ".join(f"`{file}`" for file in rows["files"]) for rows in data.values())],
                ["rows", *(rows["rows"] for rows in data.values())],
                ["with an answer", *(rows["rows_with_answer"] for rows in data.values())],
                ["with a category", *(sum(rows["rows_by_label"].values()) for rows in data.values())],
                ["left out as unusable", *(rows["skipped"] for rows in data.values())],
                ["SHA-256", *(f"`{rows['sha256']}`" for rows in data.values())],
            ],
        ),
        results=f"{_table(['', 'value'], [[f'`{key}`', f'{value:.6g}'] for key, value in metrics.items()])}\n\n"
        "Measured by the command above."
        if metrics
        else "Not measured.",
        evaluation=f"\n## Evaluation\n\n{results_section(evaluations, policy)}\n" if evaluations else "",
        versions=_table(["package", "version"], [item for item in record["versions"].items() if item[1]]),
        fewest=", ".join(fewest),
        licence=f"The base came under `{licence.get('license_name', licence['license'])}`, whose terms apply to "
        "these weights, too. So may the terms of the data that they were trained on."
        if licence.get("license")
        else "The licence of the base could not be read when this card was written. Before you publish, state it here "
        "and in the front matter, and mind the terms of the training data.",
    )


def _front_matter_of(base_model, revision):
    """The front matter of the base's own card, empty if it cannot be read, and whether the base is a local folder."""
    is_local = Path(base_model).is_dir()
    try:
        card = (
            Path(base_model) / "README.md" if is_local else hf_hub_download(base_model, "README.md", revision=revision)
        )
        return front_matter(Path(card).read_text(encoding="utf-8")), is_local
    except Exception:  # no card, no network, a card that cannot be parsed: the new one then says that it is unknown
        return {}, is_local


def _quoted(value):
    """A text or a list of texts as Python writes it in double quotes, which is as JSON does."""
    return json.dumps(value, ensure_ascii=False)


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value):
    return " ".join(str(value).split()).replace("|", r"\|")
