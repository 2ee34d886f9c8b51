"""Wait in a test."""

import threading


def until(holds, seconds=30.0):
    """Wait until something holds."""
    waited = threading.Event()
    for _ in range(int(seconds * 100)):
        if holds():
            return
        waited.wait(0.01)
    raise AssertionError("it does not happen")
