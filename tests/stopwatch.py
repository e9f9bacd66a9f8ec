"""Bounds of processor time, which hold for the code alone and not for what traces it."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """The block takes less processor time than this; coverage does not trace it meanwhile."""
    tracer = sys.gettrace()
    sys.settrace(None)
    began = time.process_time()
    try:
        yield
        took_s = time.process_time() - began
    finally:
        sys.settrace(tracer)
    assert took_s < seconds
