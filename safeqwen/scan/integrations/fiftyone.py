"""FiftyOne: a model for `dataset.apply_model` that gives one `Classification` a sample."""

from pathlib import Path

import torch


try:
    import fiftyone.core.models as fom
    import fiftyone.utils.torch as fout
    from fiftyone import Classification
except ModuleNotFoundError as error:
    raise ImportError(f"{__name__} needs {error.name}: pip install fiftyone") from error


class SafetyModel(fom.LogitsMixin, fom.SupportsGetItem, fom.TorchModelMixin, fom.Model):
    """
    A pipeline as FiftyOne's image model.

    `apply_model` gives it the samples' files, not pixels that FiftyOne decoded: those would be the first frame of an
    animation, on one paper. Frames of videos come as pixels.

    A picture that cannot be judged raises, and no label is made of it. With FiftyOne's `skip_failures=True`, its
    default, the reason is logged, and the field is left as it was for all samples of the same batch.

    Args:
        judge ([`SafetyPipeline`]): its policy, else the model's own, decides.

    Example:

    ```python
    model = SafetyModel(safeqwen.SafetyPipeline(*safeqwen.load(path)))
    dataset.apply_model(model, label_field="safety", store_logits=True, batch_size=16)
    ```
    """

    media_type = "image"
    has_logits = True
    has_collate_fn = True  # the mixin's, which gives a batch's paths as they are
    ragged_batches = False  # FiftyOne's words for "batches need no tensors of one size"
    transforms = None
    preprocess = False  # there is nothing for FiftyOne to do or to leave out
    config = None  # `apply_model` looks there for thresholds that a model applies itself
    _using_gpu = False  # and there for tensors to pin, which files are not

    def __init__(self, judge):
        super().__init__()
        self.judge = judge

    @property
    def classes(self):
        """The categories (`list[str]`), in the order of the logits."""
        return self.judge.engine.categories

    def build_get_item(self, field_mapping=None):
        """Returns what takes the model's input from a sample ([`SampleFile`])."""
        return SampleFile(field_mapping)

    def predict(self, arg):
        """Returns the `Classification` of one picture; see `predict_all`."""
        return self.predict_all([arg])[0]

    def predict_all(self, args):
        """
        Returns the `Classification` of each picture (`list`), as [`to_classification`] makes it.

        Args:
            args (iterable): uint8 arrays of shape (height, width, channels), or whatever else [`safeqwen.read_image`]
                takes. They are judged together.

        Raises:
            ValueError: if one of them cannot be judged.
            RuntimeError: if the model may not judge: its guard is untrained, or it is in training mode.
        """
        args = list(args)
        verdicts = self.judge.verdicts(args, batch_size=max(1, len(args)))
        return [to_classification(verdict, self.store_logits) for verdict in verdicts]


class SampleFile(fout.GetItem):
    """Takes the path of a sample's file, which the engine reads itself."""

    required_keys = ["filepath"]

    def __call__(self, sample):
        return Path(sample["filepath"])


def to_classification(verdict, store_logits=False):
    """
    Returns a `fiftyone.Classification` of a [`Verdict`].

    It has `label`, the likeliest category, and `confidence`, its probability in [0, 1]; beside them `unsafe`, which is
    1 - p(safe), and with a policy `action`, which is what to do: "allow", "flag" or "block".

    Args:
        verdict ([`Verdict`])
        store_logits (`bool`): whether it has `logits`, an array of shape `(categories,)` in the order of
            `verdict.categories`. They are the logarithms of the probabilities of the view that counts: the guard's
            logits less a constant of each picture (their log-sum-exp), so that their softmax is the same.

    Raises:
        ValueError: if the verdict has an error.
    """
    label = Classification(label=verdict.label, confidence=verdict.score, unsafe=verdict.unsafe)
    if verdict.decision is not None:
        label["action"] = verdict.decision.action
    if store_logits:
        probs = verdict.probs[verdict.view]
        label["logits"] = probs.clamp(min=torch.finfo(probs.dtype).tiny).log().numpy()  # finite where p is 0
    return label
