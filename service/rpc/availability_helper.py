"""Computes large answers of QueryAvailability, in this process or in a helper.

`python -m service.rpc.availability_helper` is the helper.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

from appointments.v1 import availability_pb2 as rpc

from runtime.helper import serve
from service.availability.query import AvailabilityQuery
from service.reads.occupied import Occupied
from service.rpc.availability_encoding import encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A query, what occupies its resources, and the revision that the answer shows."""

    query: AvailabilityQuery
    occupied: Sequence[Occupied]
    revision: int

    def answer(self) -> bytes:
        """Return a serialized QueryAvailabilityResponse."""
        answer = self.query.answer({each.resource_id: each.ranges for each in self.occupied})
        rest = rpc.QueryAvailabilityResponse(more_starts=answer.more_starts, revision=self.revision)
        return encoded(answer) + rest.SerializeToString()


def answer(request: bytes) -> bytes:
    """Answer a pickled Question of the program that started this helper."""
    question: Question = pickle.loads(request)  # noqa: S301  # by our own program
    return question.answer()


if __name__ == "__main__":
    serve(answer)
