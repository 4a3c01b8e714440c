"""A reader of the documentation: takes its code blocks in order, and does what they say.

What a block is says its first line:

- `sh`: commands, each of which ends well. One whose comment names Ctrl-C runs on, as in a
  terminal of its own, until it is started again or the reader has finished.
- `console`: a command after `$ `, with what it prints below it.
- `text`: what the command that was last left running prints further.
- a language and a file's name: the file.

In what is printed `...` stands for anything. Ids, keys and times of the moment are others each
time: the reader takes those that he got for those that the document shows from there on.
"""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Self

WITHIN = 180.0
"""Seconds within which a command must end, or print what the document shows."""

_BLOCK = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_OF_THE_MOMENT = re.compile(
    r"(?P<uuid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
    r"|(?P<request>\b[0-9a-f]{32}\b)"
    r"|(?P<secret>whsec_[A-Za-z0-9+/=]+)"
    r"|(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z)"
    r"|(?P<anything>\.\.\.)"
)
_SHAPES = {
    "uuid": "[0-9a-f-]{36}",
    "request": "[0-9a-f]{32}",
    "secret": "whsec_[A-Za-z0-9+/=]+",
    "time": r"[0-9T:-]+(?:\.\d+)?Z",
    "anything": ".*?",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block: its language, the name of the file that it is, its text and its place."""

    language: str
    file: str
    text: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, and its output if the document shows it."""

    text: str
    printed: str
    place: str

    @property
    def runs_on(self) -> bool:
        return "Ctrl-C" in self.text.partition(" # ")[2]

    @property
    def bare(self) -> str:
        """The command itself, without settings before it and a comment behind it."""
        return re.sub(r"^(?:[A-Z_]+=\S+ +)*", "", self.text.partition(" # ")[0]).strip()


def blocks_of(document: Path) -> Iterator[Block]:
    text = document.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        language, _, file = found["info"].partition(" ")
        place = f"{document.name}:{text.count(chr(10), 0, found.start()) + 1}"
        yield Block(language=language, file=file, text=found["text"], place=place)


def commands_of(block: Block) -> Iterator[Command]:
    """Split an `sh` or `console` block into its commands."""
    if block.language == "sh":
        for text in re.split(r"(?<!\\)\n", block.text):
            if text.strip():
                yield Command(text=text, printed="", place=block.place)
    else:
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            text, _, printed = re.sub(r"\\\n", "\\\\\r", part).partition("\n")
            yield Command(text=text.replace("\r", "\n"), printed=printed, place=block.place)


class Reader:
    """Works in one directory, like somebody with some terminals side by side.

    `known` are values that the documents show and what stands for them here, such as ports.
    """

    def __init__(
        self, directory: Path, environment: Mapping[str, str], known: Mapping[str, str]
    ) -> None:
        self._directory = directory
        self._environment = environment
        self._known = dict(known)
        self._running: list[_Terminal] = []
        self._leaving = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.close()

    def save(self, block: Block) -> None:
        (self._directory / block.file).write_text(self._here(block.text), encoding="utf-8")

    def run(self, command: Command) -> None:
        """Run a command. AssertionError if it, or what it prints, is not as the document says."""
        for earlier in [each for each in self._running if each.command.bare == command.bare]:
            earlier.press_ctrl_c()
            self._running.remove(earlier)
        terminal = _Terminal(command, self._here(command.text), self._directory, self._environment)
        if command.runs_on:
            self._running.append(terminal)
            self._leaving.callback(terminal.press_ctrl_c)
        else:
            terminal.wait()
        if command.printed:
            self._compare(terminal, command.printed)

    def read_on(self, block: Block) -> None:
        """Wait for further output of the last command that is still running."""
        self._compare(self._running[-1], block.text)

    def _compare(self, terminal: "_Terminal", printed: str) -> None:
        kinds: list[tuple[str, str]] = []

        def shape(found: re.Match[str]) -> str:
            kinds.append((found.lastgroup or "", found[0]))
            return f"\0{len(kinds) - 1}\0"

        literal = re.escape(_OF_THE_MOMENT.sub(shape, self._here(printed.strip("\n"))))
        pattern = re.sub(
            "\\\\?\0(\\d+)\\\\?\0", lambda found: f"({_SHAPES[kinds[int(found[1])][0]]})", literal
        )
        found = terminal.expect(re.compile(rf"\s*{pattern}\s*", re.DOTALL))
        for (kind, shown), got in zip(kinds, found.groups(), strict=True):
            if kind != "anything":
                self._known[shown] = got

    def _here(self, text: str) -> str:
        """Replace values in the document by those that the reader received."""
        if not self._known:
            return text
        shown = sorted(self._known, key=len, reverse=True)
        pattern = "|".join(rf"(?<!\w){re.escape(each)}(?!\w)" for each in shown)
        return re.sub(pattern, lambda found: self._known[found[0]], text)


class _Terminal:
    """A running command and its output so far."""

    def __init__(
        self, command: Command, text: str, directory: Path, environment: Mapping[str, str]
    ) -> None:
        self.command = command
        self._changed = threading.Condition()
        self._printed = ""
        self._errors = ""
        self._read_to = 0
        self._ended = False
        self._process = subprocess.Popen(
            ["bash", "-c", text],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._readers: Sequence[threading.Thread] = [
            threading.Thread(target=self._read, args=(name,), daemon=True)
            for name in ("stdout", "stderr")
        ]
        for reader in self._readers:
            reader.start()

    def wait(self) -> None:
        """Wait for its end. Raises AssertionError if it does not end or fails."""
        try:
            code = self._process.wait(WITHIN)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            raise AssertionError(f"does not end: {self}") from None
        for reader in self._readers:
            reader.join(WITHIN)
        assert code == 0, f"exit code {code}: {self}"

    def expect(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Wait until this is printed, right after what was found before, and nothing else.

        One that runs on may print more.
        """
        end = monotonic() + WITHIN
        with self._changed:
            while True:
                find = pattern.match if self.command.runs_on else pattern.fullmatch
                found = find(self._printed, self._read_to)
                if found is not None:
                    self._read_to = found.end()
                    return found
                if self._ended or not self._changed.wait(end - monotonic()):
                    raise AssertionError(f"{pattern.pattern}\nis not what is printed: {self}")

    def press_ctrl_c(self) -> None:
        self._signal(signal.SIGINT)
        try:
            self._process.wait(WITHIN)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            raise AssertionError(f"does not stop: {self}") from None

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _read(self, name: str) -> None:
        pipe = getattr(self._process, name)
        while part := os.read(pipe.fileno(), 65536):
            text = part.decode("utf-8", "replace").replace("\r\n", "\n")
            with self._changed:
                if name == "stdout":
                    self._printed += text
                else:
                    self._errors += text
                self._changed.notify_all()
        with self._changed:
            self._ended = self._ended or name == "stdout"
            self._changed.notify_all()

    def __str__(self) -> str:
        return f"{self.command.place}: $ {self.command.text}\n{self._printed}\n{self._errors}"
