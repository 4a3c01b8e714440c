"""The simplest write, for tests to which its content does not matter."""

from service.domain import Cancel


def cancel(id: str) -> Cancel:
    return Cancel(
        id=id,
        updated_at=None,
        expected_revision=None,
        idempotency_key=None,
        validate_only=False,
        actor="",
    )
