"""Items of any source, prepared by threads ahead of what waits for them, within a budget of memory."""

import inspect
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass


MAX_ERRORS_IN_A_ROW = 1000  # of a source that fails at every step and would never end


@dataclass
class SourceFailed:
    """The end of a source that cannot go on after its `error`."""

    error: Exception


def items_of(source):
    """Yields the items of anything that can be iterated, or of a map-style dataset.

    An item that cannot be had is the `Exception` raised for it, in its place. The source goes on if it can; if not,
    the last item is [`SourceFailed`].
    """
    if not hasattr(source, "__iter__"):
        source = map(source.__getitem__, range(len(source)))  # goes on after an error
    iterator = iter(source)
    errors_in_a_row = 0
    while True:
        try:
            item = next(iterator)
            errors_in_a_row = 0
        except StopIteration:
            return
        except Exception as error:
            errors_in_a_row += 1
            if inspect.isgenerator(iterator) or errors_in_a_row > MAX_ERRORS_IN_A_ROW:
                yield SourceFailed(error)
                return
            item = without_tensors(error)
        yield item


class Budget:
    """Lets workers wait until prepared pictures take less memory than `num_bytes`."""

    def __init__(self, num_bytes):
        self.free = num_bytes
        self.wanted = 0  # the number of the picture that is waited for
        self.closed = False
        self.changed = threading.Condition()

    def wait(self, number):
        """Returns when there is memory for picture `number`: at once if it is waited for, else nothing would move."""
        with self.changed:
            self.changed.wait_for(lambda: self.free > 0 or number <= self.wanted or self.closed)

    def take(self, num_bytes):
        self.give_back(-num_bytes)

    def give_back(self, num_bytes):
        with self.changed:
            self.free += num_bytes
            self.changed.notify_all()

    def want(self, number):
        with self.changed:
            self.wanted = number
            self.changed.notify_all()

    def close(self):
        with self.changed:
            self.closed = True
            self.changed.notify_all()


def prepare_ahead(items, prepare, budget, num_workers, num_ahead):
    """Yields what `prepare` returns for each item, in their order; threads prepare up to `num_ahead` items ahead."""

    def prepare_next(number, item):
        budget.wait(number)
        if budget.closed:
            return None
        entry = prepare(item)
        budget.take(_num_bytes(entry))
        return entry

    if num_workers == 0:
        for item in items:
            yield prepare_next(0, item)
        return
    pending, num_yielded = deque(), 0
    pool = ThreadPoolExecutor(num_workers)  # starts tasks in their order, so that the picture waited for is among them
    try:
        for number, item in enumerate(items):
            pending.append(pool.submit(prepare_next, number, item))
            if len(pending) > num_ahead:
                budget.want(num_yielded)
                yield pending.popleft().result()
                num_yielded += 1
        while pending:
            budget.want(num_yielded)
            yield pending.popleft().result()
            num_yielded += 1
    finally:
        budget.close()
        pool.shutdown(cancel_futures=True)


def take_window(prepared, window_size, max_bytes):
    """The next entries (`list`): `window_size` of them, or fewer if they have `max_bytes` bytes or the source ends."""
    window, num_bytes = [], 0
    for entry in prepared:
        window.append(entry)
        num_bytes += _num_bytes(entry)
        if len(window) == window_size or num_bytes >= max_bytes or isinstance(entry, SourceFailed):
            break
    return window


def _num_bytes(entry):
    return getattr(entry, "num_bytes", 0)  # an entry without a picture takes none


def without_tensors(error):
    """The error without its traceback, whose variables would keep pictures in memory."""
    return error.with_traceback(None)
