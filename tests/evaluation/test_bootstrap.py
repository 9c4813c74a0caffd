"""Intervals: against the textbook's formula, and where there can be none."""

import math

import numpy as np
import pytest

from safeqwen.evaluation.bootstrap import bootstrap


def share_of(hits):
    return lambda chosen: {"share": hits[chosen].mean()}


def test_the_interval_of_a_share_is_the_normal_one():
    # 300 of 1,000: 0.3 +- 1.96 sqrt(0.3 x 0.7 / 1000) = 0.3 +- 0.0284
    hits = np.arange(1000) < 300
    found = bootstrap(share_of(hits), [str(i) for i in range(1000)], num_resamples=2000)["share"]
    assert found["value"] == 0.3
    assert found["low"] == pytest.approx(0.3 - 0.0284, abs=0.003)
    assert found["high"] == pytest.approx(0.3 + 0.0284, abs=0.003)
    assert (found["undefined_resamples"], found["reason"]) == (0, None)


def test_rows_of_one_picture_are_drawn_together():
    # The same 1,000 rows of 250 pictures, four equal ones each: as sure as 250 rows, sqrt(4) times as wide.
    hits = np.arange(1000) < 300
    found = bootstrap(share_of(hits), [str(i // 4) for i in range(1000)], num_resamples=2000)["share"]
    assert found["high"] - found["low"] == pytest.approx(2 * 2 * 0.0284, rel=0.1)


def test_all_figures_are_measured_on_the_same_draws():
    draws = []
    bootstrap(lambda chosen: draws.append(chosen.tolist()) or {"a": 0.0, "b": 1.0}, ["x", "y", "z"], num_resamples=100)
    assert len(draws) == 101 and draws[0] == [0, 1, 2]
    again = []
    bootstrap(lambda chosen: again.append(chosen.tolist()) or {"c": 0.0}, ["x", "y", "z"], num_resamples=100)
    assert draws == again


def test_resamples_that_do_not_define_a_figure_are_left_out_and_counted():
    calls = iter([0.5, *[math.nan] * 5, *[0.4] * 50, *[0.6] * 45])  # the first is the value
    found = bootstrap(lambda chosen: {"a": next(calls)}, ["x", "y"], num_resamples=100)["a"]
    assert (found["low"], found["high"], found["undefined_resamples"]) == (0.4, 0.6, 5)
    calls = iter([0.5, *[math.nan] * 6, *[0.4] * 94])
    found = bootstrap(lambda chosen: {"a": next(calls)}, ["x", "y"], num_resamples=100)["a"]
    assert found["low"] is found["high"] is None and found["value"] == 0.5
    assert found["reason"] == "no interval: undefined in 6 of 100 resamples, there are too few pictures"


def test_one_picture_has_no_interval():
    found = bootstrap(share_of(np.array([True, False])), ["x", "x"], num_resamples=100)["share"]
    assert (found["value"], found["low"], found["high"]) == (0.5, None, None)
    assert found["reason"] == "no interval: there is one picture only"


def test_an_interval_of_no_width_says_that_it_shows_nothing():
    found = bootstrap(share_of(np.ones(20)), [str(i) for i in range(20)], num_resamples=100)["share"]
    assert (found["low"], found["high"]) == (1, 1)
    assert found["reason"] == "all resamples agree, so the interval does not show how sure this is"


def test_few_resamples_are_refused():
    with pytest.raises(ValueError, match="num_resamples must be 100 or more for a 95 % interval; got 99"):
        bootstrap(share_of(np.ones(2)), ["x", "y"], num_resamples=99)
