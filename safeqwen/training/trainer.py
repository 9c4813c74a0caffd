"""transformers' Trainer with two losses and two learning rates; what is drawn, and how it is weighted."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import Sampler
from transformers import Trainer, trainer_utils

from safeqwen.data.rows import IGNORED
from safeqwen.hub.guard_safeqwen import GUARD
from safeqwen.training.checkpoints import COMPLETE, written_whole


class SafetyTrainer(Trainer):
    """
    transformers' Trainer, with both losses normalised over the whole accumulated batch of all processes.

    loss = sum of token losses / labelled tokens + safety_loss_lambda * sum of verdict losses / verdict labels, where
    sums and counts run over all that goes into one step. However the batch is cut into processes and accumulation
    steps, the gradient is the same. Verdict labels are those of rows and of pictures by themselves; with class weights
    they and their losses are weighted.

    Args:
        class_weights (`torch.FloatTensor` of shape `(num_categories,)`, *optional*)
        sample_weights (`list[float]`, *optional*): draws rows with replacement, each this often.
        args, kwargs: as Trainer takes them; `args` is a [`SafetyTrainingArguments`].

    For an optimizer of your own, override `create_optimizer` and pass the subclass to `train`.
    """

    def __init__(self, *args, class_weights=None, sample_weights=None, safety_loss_lambda=1.0, **kwargs):
        super().__init__(*args, compute_metrics=self._metrics, **kwargs)
        # The losses are divided by what the whole step holds: the library is not to divide them again.
        self.model_accepts_loss_kwargs = True
        self.class_weights = class_weights
        self.sample_weights = sample_weights
        self.safety_loss_lambda = safety_loss_lambda
        self._logged = None  # sums since the last log

    def create_optimizer(self, model=None):
        """AdamW or what `optim` says, with the guard's learning rate beside the model's."""
        model = self.model if model is None else model
        if self.optimizer is None:
            optimizer, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer(self.parameter_groups(model.named_parameters()), **kwargs)
        return self.optimizer

    def parameter_groups(self, named_parameters):
        """`list[dict]`: the parameters that are trained, by learning rate and weight decay."""
        named_parameters, groups = [pair for pair in named_parameters if pair[1].requires_grad], []
        for is_guard, rate in ((False, self.args.learning_rate), (True, self.args.guard_learning_rate)):
            for decays in (True, False):
                parameters = [
                    parameter
                    for name, parameter in named_parameters
                    if (GUARD in name) == is_guard and (parameter.ndim > 1) == decays  # norms and biases do not decay
                ]
                decay = self.args.weight_decay if decays else 0.0
                groups.append({"params": parameters, "lr": rate, "weight_decay": decay})
        return [group for group in groups if group["params"]]

    def _get_train_sampler(self, train_dataset=None):
        if self.sample_weights is None:
            return super()._get_train_sampler(train_dataset)
        return WeightedSampler(self.sample_weights, self.args.seed)

    def get_train_dataloader(self):
        loader = super().get_train_dataloader()
        if self.sample_weights is not None and hasattr(loader, "set_sampler"):
            loader.set_sampler(WeightedSampler(self.sample_weights, self.args.seed))  # so that it hears of the epoch
        return loader

    def _get_num_items_in_batch(self, batch_samples, device):
        """`(2,)`: labelled tokens and (weighted) verdict labels of the step, over all processes."""
        tokens = sum(int(batch["labels"][:, 1:].ne(IGNORED).sum()) for batch in batch_samples if "labels" in batch)
        verdicts = sum(
            float(self._weights(batch[name]).sum())
            for batch in batch_samples
            for name in ("safety_labels", "picture_categories")
            if name in batch
        )
        counts = torch.tensor([tokens, verdicts], dtype=torch.float32, device=device)
        return self.accelerator.gather(counts[None]).sum(dim=0)

    def _weights(self, safety_labels):
        labelled = safety_labels.ne(IGNORED)
        if self.class_weights is None:
            return labelled.float()
        return self.class_weights.to(safety_labels.device)[safety_labels.clamp(min=0)] * labelled

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        sums = self._sums(model, inputs)
        counts = num_items_in_batch
        if counts is None:
            counts = torch.stack([sums.num_tokens.sum(), sums.label_weights.sum()])
        tokens, verdicts = counts.clamp(min=1e-8).unbind()
        loss = sums.lm_losses.sum() / tokens + self.safety_loss_lambda * sums.safety_losses.sum() / verdicts
        if model.training:
            if not loss.isfinite():  # the library would go on and log the last loss that was
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {self.state.global_step + 1}: in float16 this is an overflow "
                    "within the model, so train with bf16: true or dtype: float32; else lower the learning rates"
                )
            self._note(sums, inputs["safety_labels"])
            loss = loss * self.accelerator.num_processes  # their gradients are averaged
        return (loss, sums) if return_outputs else loss

    def _sums(self, model, inputs):
        """
        The losses of a batch, row by row.

        Returns:
            [`Losses`]
        """
        inputs = dict(inputs)
        labels, safety_labels = inputs.pop("labels", None), inputs["safety_labels"]
        picture_rows = inputs.pop("picture_rows", None)
        if labels is not None:
            # No logits for what comes before the first answer: pictures are most of a prompt.
            answered = labels.ne(IGNORED).any(dim=0).nonzero()
            first = int(answered[0]) if len(answered) else labels.shape[1]
            kept = labels.shape[1] - first + 1
            inputs |= {"logits_to_keep": kept, "use_cache": False}
        outputs = model(**inputs)
        zeros = safety_labels.new_zeros(len(safety_labels), dtype=torch.float32)
        lm_losses = num_tokens = zeros
        if labels is not None:
            logits, targets = outputs.logits[:, :-1].float(), labels[:, labels.shape[1] - kept + 1 :]
            losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
            lm_losses, num_tokens = losses.sum(dim=1), targets.ne(IGNORED).sum(dim=1).float()
        label_weights = self._weights(safety_labels)
        logits = outputs.img_safety_logits
        if logits is None:  # no pictures: the model's own loss is a zero with a gradient, which DDP wants
            logits = torch.full((len(zeros), self._num_categories), float("nan"), device=zeros.device)
            safety_losses = zeros + outputs.safety_loss
        else:
            losses = F.cross_entropy(logits, safety_labels, ignore_index=IGNORED, reduction="none")
            safety_losses = losses * label_weights
        if outputs.get("picture_safety_logits") is not None:
            targets = inputs["picture_categories"]
            weights = self._weights(targets)
            losses = F.cross_entropy(outputs.picture_safety_logits, targets, ignore_index=IGNORED, reduction="none")
            # To their own rows: of the rows that fill up the last batch of an evaluation nothing is to be counted.
            safety_losses = safety_losses.index_add(0, picture_rows, losses * weights)
            label_weights = label_weights.index_add(0, picture_rows, weights)
        return Losses(lm_losses, num_tokens, safety_losses, label_weights, logits.detach())

    @property
    def _num_categories(self):
        return self.accelerator.unwrap_model(self.model).config.num_safety_categories

    # ------------------------------------------------------------------------------------------------- what is logged

    def _note(self, sums, safety_labels):
        """Adds a training batch to what the next log says."""
        size = self._num_categories
        if self._logged is None:
            self._logged = torch.zeros(size * size + 4, device=safety_labels.device, dtype=torch.float32)
        rows = safety_labels.ne(IGNORED)
        cells = safety_labels[rows] * size + sums.logits[rows].argmax(dim=-1)
        self._logged[: size * size] += torch.bincount(cells, minlength=size * size)
        totals = (sums.lm_losses, sums.num_tokens, sums.safety_losses, sums.label_weights)
        self._logged[size * size :] += torch.stack([total.detach().sum() for total in totals])

    def log(self, logs, *args, **kwargs):
        if "loss" in logs and self._logged is not None:
            sums, self._logged = self.accelerator.reduce(self._logged, "sum"), None
            size = self._num_categories
            *_, lm, tokens, safety, verdicts = sums.tolist()
            confusion = sums[: size * size].view(size, size)
            logs = {**logs, **_metrics(lm, tokens, safety, verdicts, confusion, self.safety_loss_lambda)}
            del logs["total_loss"]  # as Trainer has it
        super().log(logs, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            sums = self._sums(model, inputs)
        numbers = torch.stack([sums.lm_losses, sums.num_tokens, sums.safety_losses, sums.label_weights], dim=1)
        return None, torch.cat([sums.logits, numbers], dim=1), inputs["safety_labels"]

    def _metrics(self, predictions):
        """What Trainer gathered of `prediction_step`, as metrics of the whole evaluation set."""
        numbers, labels = torch.from_numpy(predictions.predictions), torch.from_numpy(predictions.label_ids)
        logits, (lm, tokens, safety, verdicts) = numbers[:, :-4], numbers[:, -4:].double().sum(dim=0).tolist()
        size, judged = logits.shape[1], labels.ne(IGNORED)
        if logits[judged].isnan().any():
            raise ValueError(
                "the guard has not been trained yet, so it cannot be evaluated: leave eval_on_start out, or let the "
                "first evaluation come later (eval_steps, eval_delay)"
            )
        cells = labels[judged] * size + logits[judged].argmax(dim=-1)
        confusion = torch.bincount(cells, minlength=size * size).view(size, size)
        metrics = _metrics(lm, tokens, safety, verdicts, confusion, self.safety_loss_lambda)
        metrics["loss"] = metrics.pop("total_loss")
        return metrics

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def _save_checkpoint(self, model, trial):
        """As the library's, but a checkpoint counts only once it is whole, and only then may older ones go."""
        folder = Path(self.args.output_dir, f"{trainer_utils.PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with written_whole(folder, self.args):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    (folder / COMPLETE).touch()
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            if hasattr(trainer_utils, "rotate_checkpoints"):  # a function since transformers 5.0
                best = self.state.best_model_checkpoint
                trainer_utils.rotate_checkpoints(self.args.output_dir, limit, best)
            else:
                self._rotate_checkpoints(output_dir=self.args.output_dir)


@dataclass
class Losses:
    """Of a batch, row by row, float32 `(batch_size,)`; the logits are `(batch_size, num_categories)`."""

    lm_losses: torch.Tensor  # summed over the row's labelled tokens
    num_tokens: torch.Tensor
    safety_losses: torch.Tensor  # weighted, of rows and their pictures
    label_weights: torch.Tensor  # of rows and their pictures
    logits: torch.Tensor


class WeightedSampler(Sampler):
    """Draws as many rows as there are, with replacement, each in proportion to its weight; anew each epoch."""

    def __init__(self, weights, seed):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.weights)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        yield from torch.multinomial(self.weights, len(self), replacement=True, generator=generator).tolist()


def _metrics(lm_loss, num_tokens, safety_loss, verdicts, confusion, safety_loss_lambda):
    """
    Losses per token and per verdict, and how often the guard was right about whole rows.

    Args:
        lm_loss, num_tokens, safety_loss, verdicts (`float`): sums and their counts.
        confusion (`torch.Tensor` of shape `(num_categories, num_categories)`): true labels by row, verdicts by column.
    """
    metrics, total = {}, 0.0
    if num_tokens:
        metrics["lm_loss"] = lm_loss / num_tokens
        total += metrics["lm_loss"]
    if verdicts:
        metrics["safety_loss"] = safety_loss / verdicts
        total += safety_loss_lambda * metrics["safety_loss"]
    if confusion.any():
        confusion = confusion.double()
        right, shown, said = confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)
        seen = (shown + said) > 0
        metrics["guard_accuracy"] = float(right.sum() / confusion.sum())
        metrics["guard_macro_f1"] = float((2 * right / (shown + said))[seen].mean())
    return {**metrics, "total_loss": total}


class WholeSteps(torch.utils.data.Dataset):
    """
    Rows, and blank ones behind them, so that each step of an epoch is whole.

    accelerate would fill up the last step with rows from the beginning, the more of them the more processes there are,
    and they would count twice. Blank rows count in neither loss.
    """

    def __init__(self, rows, rows_per_step):
        self.rows = rows
        self.num_blank = -len(rows) % rows_per_step

    def __len__(self):
        return len(self.rows) + self.num_blank

    def __getitem__(self, index):
        return self.rows[index] if index < len(self.rows) else self.rows.blank()


def class_weights(labels, num_categories):
    """
    Returns a weight for each category so that all weigh the same in the safety loss, float32 `(num_categories,)`.

    labelled rows / (categories that occur * rows of the category), as scikit-learn's "balanced"; 1 for a category
    without rows.
    """
    known = torch.tensor([label for label in labels if label != IGNORED], dtype=torch.long)
    counts = torch.bincount(known, minlength=num_categories)
    weights = counts.sum() / (counts.gt(0).sum() * counts)
    return weights.masked_fill(counts.eq(0), 1.0)


def sample_weights(labels):
    """`list[float]`: how often to draw each row so that all labels, "none" among them, come up equally often."""
    counts = Counter(labels)
    return [1 / counts[label] for label in labels]
