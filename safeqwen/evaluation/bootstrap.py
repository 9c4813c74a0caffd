"""How sure a figure is: percentile intervals from resampled pictures (Efron and Tibshirani 1993, chapter 13).

What is drawn with replacement are pictures, not rows: several rows of a benchmark may ask about one picture, and then
hold one verdict several times. All figures of a call, and both sides of a comparison, are computed on the same draws.
"""

import numpy as np


LEVEL = 0.95  # of every interval
MOST_UNDEFINED = 0.05  # share of resamples without a value, above which there is no interval
FEWEST_RESAMPLES = 100  # 2.5 % of fewer is no percentile
NUM_RESAMPLES = 1000


def bootstrap(measure, pictures, *, num_resamples=NUM_RESAMPLES, seed=0):
    """
    Figures with intervals.

    Args:
        measure (callable): indices of rows (`np.ndarray` of shape `(num_rows,)`, int, some several times) -> `dict` of
            any keys, the same in every call, to a number; NaN where the rows do not define it.
        pictures (`list[str]`): of each row. Their order does not change what is drawn, only which.
        num_resamples (`int`): 100 or more.
        seed (`int`)

    Returns:
        `dict`: of the same keys, `{"value", "low", "high", "undefined_resamples", "reason"}` each. `value` is measured
        on all rows, and `None` if it is undefined. `low` and `high` bound the middle 95 % of the resamples in which
        the figure is defined; they are `None` if it is undefined in more than 5 % of them, or if there is one picture
        only. `reason` says why something is missing, or what the interval cannot show, and is `None` otherwise.

    Raises:
        ValueError: if `num_resamples` is less than 100.
    """
    if num_resamples < FEWEST_RESAMPLES:
        raise ValueError(f"num_resamples must be {FEWEST_RESAMPLES} or more for a 95 % interval; got {num_resamples}")
    _, picture_of_row = np.unique(np.asarray(pictures, dtype=str), return_inverse=True)
    num_pictures, rows = int(picture_of_row.max()) + 1, np.arange(len(pictures))
    generator = np.random.default_rng(seed)
    values, resampled = measure(rows), []
    for _ in range(num_resamples):
        times = np.bincount(generator.integers(num_pictures, size=num_pictures), minlength=num_pictures)
        resampled.append(list(measure(np.repeat(rows, times[picture_of_row])).values()))
    columns = np.array(resampled, dtype=float).T
    return {key: _figure(value, column, num_pictures) for (key, value), column in zip(values.items(), columns)}


def _figure(value, resampled, num_pictures):
    figure = dict.fromkeys(("value", "low", "high", "undefined_resamples", "reason"))
    if np.isnan(value):
        return {**figure, "reason": "undefined on these rows"}
    figure["value"] = float(value)
    defined = resampled[~np.isnan(resampled)]
    figure["undefined_resamples"] = undefined = len(resampled) - len(defined)
    if num_pictures == 1:
        return {**figure, "reason": "no interval: there is one picture only"}
    if undefined > MOST_UNDEFINED * len(resampled):
        reason = f"no interval: undefined in {undefined} of {len(resampled)} resamples, there are too few pictures"
        return {**figure, "reason": reason}
    figure["low"], figure["high"] = map(float, np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if figure["low"] == figure["high"]:
        figure["reason"] = "all resamples agree, so the interval does not show how sure this is"
    return figure


def figure_of(figure, n, why_undefined):
    """A figure of [`bootstrap`] as metrics.json holds it: with the number of rows, without the keys that say nothing.

    Args:
        figure (`dict`)
        n (`int`): of the rows that it is a figure of.
        why_undefined (`str`): its `reason` if it has no value.
    """
    if figure["value"] is None:
        figure = {**figure, "reason": why_undefined}
    remarks = {key: figure[key] for key in ("undefined_resamples", "reason") if figure[key]}
    return {key: figure[key] for key in ("value", "low", "high")} | {"n": n} | remarks


def picture_of(row):
    """What a row shares (`str`) with all rows of the same picture, and with no other."""
    return f"row {row.id}" if row.image_sha256 is None else row.image_sha256
