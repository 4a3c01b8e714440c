"""Files that settings name, read again when they change."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import structlog

INTERVAL = 1.0
"""Seconds between looks at the files. A change is used when two looks have found the same."""

Content = TypeVar("Content")

log = structlog.get_logger()


class FilesUnfit(Exception):
    """Files that cannot be used. The message names the setting, and what to mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingFile:
    """A file, and the setting that names it."""

    setting: str
    path: Path

    def read(self) -> bytes:
        """Return the content. Raises FilesUnfit."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise self.unfit(f"cannot be read: {error.strerror}") from error

    def unfit(self, problem: str) -> FilesUnfit:
        return FilesUnfit(f"{self.setting}: {self.path} {problem}")


@dataclass(frozen=True, slots=True)
class _Unusable:
    reason: str


class FileWatch(Generic[Content]):
    """What `read` returns from files: values that can be compared.

    Raises FilesUnfit if they cannot be used at first. Afterwards files that cannot be used, such
    as a certificate whose key is not written yet, are logged, and the last good ones stay. `what`
    is their name in the log.
    """

    def __init__(self, what: str, read: Callable[[], Content]) -> None:
        self._renewed, self._not_renewed = f"{what} renewed", f"{what} not renewed"
        self._read = read
        self.current = read()

    async def follow(self, use: Callable[[Content], Awaitable[None]] | None = None) -> NoReturn:
        """Keep `current` up to date, until cancelled.

        `use` gets a new content first, and raises FilesUnfit if it cannot be used.
        """
        found: Content | _Unusable = self.current
        handled = found
        while True:
            await asyncio.sleep(INTERVAL)
            self.looked()
            before, found = found, await asyncio.to_thread(self._look)
            # Not what is half written yet, nor a certificate whose key follows.
            if found != before or found == handled:
                continue
            handled = found
            if isinstance(found, _Unusable):
                log.warning(self._not_renewed, error=found.reason)
            elif found != self.current:
                try:
                    if use is not None:
                        await use(found)
                except FilesUnfit as error:
                    log.warning(self._not_renewed, error=str(error))
                    continue
                self.current = found
                log.info(self._renewed, **self.fields())

    def looked(self) -> None:
        """Do what is due at each interval."""

    def fields(self) -> dict[str, object]:
        """Return the fields of the log event of a renewal."""
        return {}

    def _look(self) -> Content | _Unusable:
        try:
            return self._read()
        except FilesUnfit as error:
            return _Unusable(str(error))
