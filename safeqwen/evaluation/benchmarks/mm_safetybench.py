"""MM-SafetyBench: harmful questions whose key phrase was moved into a picture. For answers alone, no label of
pictures.

    DATA/processed_questions/01-Illegal_Activitiy.json    {"0": {"Question": "...", "Rephrased Question": "...",
                                                          "Rephrased Question(SD)": "...", "Key Phrase": "..."}, ...}
    DATA/imgs/01-Illegal_Activitiy/SD_TYPO/0.jpg

of 13 scenarios, in DATA or in DATA/data; or, as PKU-Alignment/MM-SafetyBench on the Hub,

    DATA/data/Illegal_Activitiy/SD_TYPO.parquet           with the columns id, question, image

The splits are the kinds of picture: SD (drawn), TYPO (typed), SD_TYPO (both; by default).

Looked up in Virtue-Research/guard-eval-harness, src/guard_eval_harness/datasets/mm_safetybench.py, and in several
other public readers of both layouts; the repository itself, isXinLiu/MM-SafetyBench, could not be read.
"""

from safeqwen.data.sources import BadRow
from safeqwen.evaluation.benchmarks.benchmark import ATTACK_DIRECTIONS, Benchmark, Examples, examples_of, text_of
from safeqwen.evaluation.benchmarks.mapping import hint
from safeqwen.evaluation.benchmarks.tables import Table, as_path, dataset_table, file_object


FACTS = {
    "title": "MM-SafetyBench",
    "version": "arXiv 2311.17600",
    "source": "Liu et al., arXiv 2311.17600; isXinLiu/MM-SafetyBench on GitHub, PKU-Alignment/MM-SafetyBench (Hub)",
    "licence": "CC-BY-NC-4.0",
    "label_rule": (
        "Pictures have no label. Expected: every question is refused. Its authors let a language model judge answers, "
        "so figures of refusal strings are not comparable with theirs."
    ),
    "has_picture_labels": False,
    "has_queries": True,
    "directions": {**ATTACK_DIRECTIONS, "refusal_rate": "higher"},
    "num_rows_published": {"each split": 1680},
}

SCENARIOS = (
    "01-Illegal_Activitiy",  # as it is spelt there
    "02-HateSpeech",
    "03-Malware_Generation",
    "04-Physical_Harm",
    "05-EconomicHarm",
    "06-Fraud",
    "07-Sex",
    "08-Political_Lobbying",
    "09-Privacy_Violence",
    "10-Legal_Opinion",
    "11-Financial_Advice",
    "12-Health_Consultation",
    "13-Gov_Decision",
)

QUESTIONS = {"SD_TYPO": "Rephrased Question", "SD": "Rephrased Question(SD)", "TYPO": "Rephrased Question"}
"""Split -> field of the question that goes with its pictures."""


def load(data, *, mapping=None, split=None, categories):
    """Returns the [`Benchmark`]; see `load_benchmark`."""
    split = split or "SD_TYPO"
    if split not in QUESTIONS:
        raise ValueError(f"MM-SafetyBench has no split {split!r}; {hint(split, QUESTIONS)}")
    path = as_path(data, FACTS["title"])
    root = path / "data" if (path / "data").is_dir() else path
    if (root / "processed_questions").is_dir():
        rows, table = _question_rows(root, split), Table([], root=root, pictures="imgs")
    else:
        rows, table = _parquet_rows(root, split), Table([])

    def fill(example, row):
        scenario, number = row["scenario"], row["number"]
        example.id, example.their_category = f"{scenario}/{split}/{number}", scenario
        if not isinstance(row["asked"], dict):
            raise BadRow(f"must be an object, got {type(row['asked']).__name__}")
        table.place(example, row["image"])
        example.query, example.expected = text_of(row["asked"], row["field"]), "refuse"
        example.metadata = {key: value for key, value in row["asked"].items() if key in ("Question", "Key Phrase")}

    return Benchmark(
        name="mm-safetybench",
        split=split,
        examples=Examples(examples_of(rows, fill)),
        root=table.root,
        **FACTS,
    )


def _question_rows(root, split):
    files = {scenario: root / "processed_questions" / f"{scenario}.json" for scenario in SCENARIOS}
    _refuse_missing(files.values())
    return [
        (
            f"{scenario}, question {number}",
            {
                "scenario": scenario,
                "number": number,
                "asked": asked,
                "field": QUESTIONS[split],
                "image": f"{scenario}/{split}/{number}.jpg",
            },
        )
        for scenario, file in files.items()
        for number, asked in file_object(file).items()
    ]


def _parquet_rows(root, split):
    files = {scenario: root / scenario.split("-")[1] / f"{split}.parquet" for scenario in SCENARIOS}
    if not any(file.is_file() for file in files.values()):
        raise ValueError(
            f"MM-SafetyBench: expected {root / 'processed_questions' / SCENARIOS[0]}.json, ... and "
            f"{root / 'imgs'}, or {files[SCENARIOS[0]]}, ...; found neither"
        )
    _refuse_missing(files.values())
    rows = []
    for scenario, file in files.items():
        for where, row in dataset_table(file, FACTS["title"], default=split).rows:
            row = {
                "scenario": scenario,
                "number": row.get("id"),
                "asked": row,
                "field": "question",
                "image": row["image"],
            }
            rows.append((f"{scenario}, {where}", row))
    return rows


def _refuse_missing(files):
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ValueError(f"MM-SafetyBench: there is no {', '.join(missing)}; all 13 scenarios are needed")
