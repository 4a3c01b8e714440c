"""Finds the endpoints of a path, and decodes parts of URLs."""

import re
from typing import Generic, TypeVar
from urllib.parse import unquote

Endpoint = TypeVar("Endpoint")

_VARIABLE = re.compile(r"\{([a-z_0-9]+)\}")
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


class Router(Generic[Endpoint]):
    """Finds the endpoints of a path.

    A path is matched before it is decoded. So an id may contain any percent-encoded character:
    `/a%3Acancel` has an id that ends in `:cancel`, `/a:cancel` has the verb. aiohttp's router
    decodes everything but `%2F` before it matches.
    """

    def __init__(self) -> None:
        self._fixed: dict[str, dict[str, Endpoint]] = {}
        self._templates: list[tuple[re.Pattern[str], dict[str, Endpoint]]] = []

    def add(self, http_method: str, template: str, endpoint: Endpoint) -> None:
        """Add the endpoint of a method and path. A GET endpoint also handles HEAD."""
        methods = self._methods_of(template)
        if http_method in methods:
            raise ValueError(f"{http_method} {template} has an endpoint already")
        methods[http_method] = endpoint
        if http_method == "GET":
            methods["HEAD"] = endpoint

    def find(self, raw_path: str) -> tuple[dict[str, Endpoint], dict[str, str]] | None:
        """Return the endpoints of a path by method, and its variables, still encoded."""
        methods = self._fixed.get(raw_path)
        if methods is not None:
            return methods, {}
        for pattern, endpoints in self._templates:
            match = pattern.fullmatch(raw_path)
            if match:
                return endpoints, match.groupdict()
        return None

    def _methods_of(self, template: str) -> dict[str, Endpoint]:
        if "{" not in template:
            return self._fixed.setdefault(template, {})
        # The parts alternate between literals and names of variables.
        parts = _VARIABLE.split(template)
        source = "".join(
            f"(?P<{part}>[^/]+)" if index % 2 else re.escape(part)
            for index, part in enumerate(parts)
        )
        for pattern, known in self._templates:
            if pattern.pattern == source:
                return known
        methods: dict[str, Endpoint] = {}
        self._templates.append((re.compile(source), methods))
        # A verb after a variable would also match as part of it, so longer patterns come first.
        self._templates.sort(key=lambda each: -len(each[0].pattern))
        return methods


def decode_percent(text: str) -> str:
    """Decode a part of a URL.

    Raises `ValueError` with a message for the caller if an escape is invalid or the result is
    not UTF-8.
    """
    if _BAD_ESCAPE.search(text):
        raise ValueError("must be percent-encoded: a % is not followed by two hex digits")
    try:
        decoded = unquote(text, errors="strict")
        decoded.encode()  # raw bytes that are not UTF-8 arrive as lone surrogates
    except UnicodeError:
        raise ValueError("must be UTF-8, percent-encoded") from None
    return decoded
