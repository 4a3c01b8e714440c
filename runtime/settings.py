"""What is wrong with settings that come from the environment."""

from pydantic import ValidationError


def faults(error: ValidationError) -> list[str]:
    """Say which variables are wrong, and why, without repeating their values."""
    return [
        ": ".join(
            [
                *(str(part).upper() for part in mistake["loc"]),
                mistake["msg"].removeprefix("Value error, "),
            ]
        )
        for mistake in error.errors(include_url=False, include_input=False)
    ]
