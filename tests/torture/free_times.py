"""Judges free and busy times, which the model has minute by minute."""

from itertools import groupby

from tests.torture.record import Json
from tests.torture.shown import time_of
from tests.writes.model import Model


def judge_free_times(model: Model, asks: Json, answer: Json) -> str:
    """Return what is wrong with an answer. States within an atomic batch may have overlaps."""
    together = asks.get("match") == "ALL"
    wanted = [asks["resource_id"]] if together else [[one] for one in asks["resource_id"]]
    for resources, found in zip(wanted, answer["resources"], strict=True):
        if found.get("resourceId") != (None if together else resources[0]):
            return f"it has {found.get('resourceId')!r} in the place of {resources}"
        taken = {
            minute
            for resource in resources
            for stored in model.listed(resource=resource, cancelled=False)
            for minute in range(stored.content.start, stored.content.end)
        }
        minutes = range(asks["from"], asks["to"])
        busy = _ranges([minute for minute in minutes if minute in taken])
        free = _ranges([minute for minute in minutes if minute not in taken])
        least = asks.get("duration", 0)
        for name, expected in (
            ("busy", busy),
            ("free", [(start, end) for start, end in free if end - start >= least]),
        ):
            ranges = [{"start": time_of(start), "end": time_of(end)} for start, end in expected]
            if found[name] != ranges:
                these = " and ".join(map(repr, resources))
                return f"{these} is {name} in {expected}, not {found[name]}"
    return ""


def _ranges(minutes: list[int]) -> list[tuple[int, int]]:
    """Return the ranges of minutes that follow each other."""
    groups = groupby(enumerate(minutes), key=lambda pair: pair[1] - pair[0])
    runs = [[minute for _, minute in group] for _, group in groups]
    return [(run[0], run[-1] + 1) for run in runs]
