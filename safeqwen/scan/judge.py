"""
The actor of a scan on several machines, which is one for pipelines of one's own, too: pictures in, a scan's rows out.

It needs no Ray: a batch is a dict of arrays. In Ray Data it goes

    dataset = ray.data.read_binary_files("pictures", include_paths=True).rename_columns({"path": "id"})
    pool = ray.data.ActorPoolStrategy(size=1)  # actors, each with a model and a core; the reading needs one more
    dataset.map_batches(Judge, batch_size=64, compute=pool).write_parquet("rows")
"""

from functools import partial

from safeqwen.fingerprint import weights_fingerprint
from safeqwen.judging.engine import Engine
from safeqwen.judging.load import load
from safeqwen.judging.policy import SafetyPolicy
from safeqwen.loading import DEMO_CHECKPOINT, hub_of
from safeqwen.pictures.errors import UnreadableImage
from safeqwen.scan.items import BATCH_SIZE, NUM_WORKERS, Item, judge_items
from safeqwen.scan.rows import FIELDS, RowMaker, rows_schema
from safeqwen.scan.similar import check_libraries
from safeqwen.scan.sources import Place


class Judge:
    """
    Judges batches of pictures: `judge({"id": ["a"], "bytes": [data]})` returns a `pyarrow.Table` of rows.

    A row of a scan (its fields are listed in `safeqwen.scan.rows`) is made of each picture, in the batch's order, with
    the batch's other columns behind it. What is no whole picture, or null, has its reason in `error` and no verdict.
    Copies within a batch are judged once. Groups of near-identical pictures are a whole scan's: there are none here.

    Args:
        model (`str` or `os.PathLike`, *optional*): a folder or Hub repository. By default the demo checkpoint.
        policy ([`SafetyPolicy`], `str` or `os.PathLike`, *optional*): decides, or its path. By default the one beside
            the weights, if there is one; "none" for no decision.
        batch_size (`int`): pictures, or frames of one, a forward, at most. They are batched by size within 4 times as
            many: give batches of that many pictures, or of a multiple.
        num_workers (`int`): threads that decode while others are judged.
        max_pixels (`int`, *optional*): larger pictures are shrunk to this many, by default to the processor's bound.
        kwargs: further arguments of [`safeqwen.load`], e.g. `dtype`, `device`, `revision`.

    Raises:
        ValueError: if a setting is out of range, or the policy for other categories or weights.
        RuntimeError: if the weights may not judge.
        OSError, ImportError: if there is no such model or policy, or a library is missing.
    """

    def __init__(
        self,
        model=None,
        *,
        policy=None,
        batch_size=BATCH_SIZE,
        num_workers=NUM_WORKERS,
        max_pixels=None,
        **kwargs,
    ):
        check_libraries()
        source = DEMO_CHECKPOINT if model is None else model
        self.engine = Engine(*load(source, **kwargs))
        if refusal := self.engine.model.refusal():
            raise RuntimeError(f"SafeQwen cannot judge with these weights: {refusal}")
        self.engine.image_settings(max_pixels)  # raises if it is out of range
        self.settings = {"batch_size": batch_size, "num_workers": num_workers, "max_pixels": max_pixels}
        self.model_fingerprint = weights_fingerprint(source, **hub_of(kwargs))
        if policy is None:
            policy = self.engine.model.safety_policy
        elif policy == "none":
            policy = None
        else:
            policy = policy if isinstance(policy, SafetyPolicy) else SafetyPolicy.load(policy)
            policy.check(self.engine.categories, self.model_fingerprint)
        self.maker = RowMaker(self.engine.categories, policy, self.model_fingerprint)

    def __call__(self, batch):
        """
        Returns the rows of a batch (`pyarrow.Table`).

        Args:
            batch (`dict[str, np.ndarray]`, or of lists): with the columns "id" and "bytes", those of a picture's file,
                or `None`. Others are passed on.

        Raises:
            ValueError: if it lacks one of these, or another has the name of a row's field.
        """
        import pyarrow

        others = [name for name in batch if name not in ("id", "bytes")]
        if missing := [name for name in ("id", "bytes") if name not in batch]:
            raise ValueError(f"the batch lacks {' and '.join(missing)}; it has {', '.join(batch)}")
        if taken := [name for name in others if name in FIELDS]:
            raise ValueError(f"{', '.join(taken)}: the rows have fields of this name; rename the batch's columns")
        places = [Place(str(i), partial(_given, value)) for i, value in enumerate(batch["bytes"])]
        found = sorted(self.judge(map(Item, places, range(len(places)))), key=lambda pair: pair[0].position)
        verdicts = {item.sha256: judged for item, judged in found if judged is not None}
        rows = [
            self.maker.row((str(id), item.num_bytes, item.sha256, item.error, verdicts.get(item.sha256)))
            for id, (item, _) in zip(batch["id"], found)
        ]
        table = pyarrow.Table.from_pylist(rows, rows_schema(self.maker.categories, self.maker.policy))
        for name in others:
            table = table.append_column(name, pyarrow.array([*batch[name]]))
        return table

    def judge(self, items, knows=lambda sha256: False):
        """Returns what `judge_items` finds (`list` of ([`Item`], [`Judged`] or `None`)), in no certain order."""
        found = []
        judge_items(self.engine, items, knows, lambda item, judged: found.append((item, judged)), **self.settings)
        return found


def _given(value):
    if not isinstance(value, bytes):
        raise UnreadableImage(f"holds {'nothing' if value is None else type(value).__name__}; expected a file's bytes")
    return value
