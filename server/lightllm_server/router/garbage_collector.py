"""Python's garbage collector in the router's process, where a long walk stalls a step."""

from __future__ import annotations

import gc

__all__ = ["spare_live_objects", "walk_new_objects"]

_NEVER = 10**9


def spare_live_objects() -> None:
    """Once everything is loaded: from now on the collector walks only what is new.

    What was allocated to load never becomes garbage, and an ended request leaves no cycle, so that
    only accidents are left to be found; the walks of the two young generations find those soon
    after they happen. A full walk over 10,000 queued requests would take the time of several steps.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)


def walk_new_objects() -> None:
    """Once a step, while the device works: microseconds, unless many requests have come.

    As long as about as many objects are freed as made, the collector itself walks none; all that
    are new then wait for one long walk.
    """
    gc.collect(0)
