"""CSV with a header: columns are mapped to the fields of an appointment."""

import codecs
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from typing import Any, BinaryIO

from appointments.v1.appointment_pb2 import Appointment

from client.entries import Items, Skipped, UnreadableError
from client.errors import USAGE, CommandError
from client.json_lines import FIELDS, TIMES, read_values, values_of
from client.lines import MAX_LINE, TOO_LONG

DELIMITERS = ",;\t|"
# Before the name of an attribute.
ATTRIBUTE = "attributes."
_JSON = frozenset({"additionalResourceIds", "attributes"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a CSV file looks like.

    `columns` has the headers of each field; several are joined with a space, such as a date and a
    time. A field that it does not have is in the column of its own name, if there is one.
    """

    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    delimiter: str | None = None
    encoding: str = "utf-8-sig"
    time_format: str | None = None


class _Lines:
    """The lines of a text. One that is too long becomes an empty one, and is noted."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.too_long = False

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(MAX_LINE):
            if len(line) < MAX_LINE or line.endswith("\n"):
                yield line
                continue
            while line and not line.endswith("\n"):
                line = self._text.readline(MAX_LINE)
            self.too_long = True
            yield "\n"


def read_csv(file: BinaryIO, zone: tzinfo | None, layout: Layout) -> Items:
    """Read a file. Raises CommandError if its header does not fit the layout."""
    text = io.TextIOWrapper(file, layout.encoding, errors="surrogateescape", newline="")
    try:
        lines = _Lines(text)
        first = next(iter(lines), "")
        if first.encode("utf-8", "surrogateescape").startswith(codecs.BOM_UTF16_LE):
            raise CommandError("the file is in UTF-16: add --encoding utf-16", USAGE)
        delimiter = layout.delimiter or max(DELIMITERS, key=first.count)
        columns = _columns(next(csv.reader([first], delimiter=delimiter), []), layout)
        yield from _rows(lines, delimiter, columns, zone, layout)
    finally:
        text.detach()  # or it would close the file


def _rows(
    lines: _Lines,
    delimiter: str,
    columns: "_Columns",
    zone: tzinfo | None,
    layout: Layout,
) -> Items:
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = rows.line_num + 2  # the header is not counted
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Skipped(line=number, kind="UNREADABLE", detail=f"not CSV: {error}")
            continue
        if lines.too_long:
            lines.too_long = False
            yield Skipped(line=number, kind="UNREADABLE", detail=TOO_LONG)
        elif row:
            try:
                values = columns.values(row, layout.time_format)
            except UnreadableError as error:
                yield Skipped(line=number, kind="UNREADABLE", detail=str(error))
            else:
                yield read_values(number, values, zone)


@dataclass(frozen=True, slots=True)
class _Columns:
    """The indexes of the columns of each field."""

    width: int
    of: Mapping[str, Sequence[int]]

    def values(self, row: Sequence[str], time_format: str | None) -> dict[str, Any]:
        """Return the values of a row by their JSON names, without empty ones."""
        if len(row) != self.width:
            raise UnreadableError(f"it has {len(row)} cells, and the header has {self.width}")
        values: dict[str, Any] = {}
        for name, indexes in self.of.items():
            text = " ".join(cell for index in indexes if (cell := row[index].strip()))
            if not text:
                continue
            if not text.isascii() and any("\udc80" <= character <= "\udcff" for character in text):
                raise UnreadableError(f"{name} is in another encoding: add --encoding")
            if name.startswith(ATTRIBUTE):
                attributes = values.setdefault("attributes", {})
                if isinstance(attributes, dict):
                    attributes[name.removeprefix(ATTRIBUTE)] = text
            elif name in _JSON:
                values[name] = _json(name, text)
            elif name in TIMES and time_format is not None:
                values[name] = _time(name, text, time_format)
            else:
                values[name] = text
        return values


def _columns(header: Sequence[str], layout: Layout) -> _Columns:
    """Find the columns. Raises CommandError if one is missing or there twice."""
    names = [name.strip() for name in header]
    shown = ", ".join(names) or "nothing"
    wanted = {name: [name] for name in FIELDS if name in names}
    wanted |= {name: [name] for name in names if name.startswith(ATTRIBUTE)}
    wanted |= {name: list(headers) for name, headers in layout.columns.items()}
    for name in ("start", "end"):
        if name not in wanted:
            raise CommandError(
                f"no column is the {name}: add --column {name}=HEADER; the file has {shown}", USAGE
            )
    for headers in wanted.values():
        for each in headers:
            if names.count(each) != 1:
                much = "twice" if each in names else "not"
                raise CommandError(f"column {each} is {much} in the file, which has {shown}", USAGE)
    # The whole object first, so that single attributes are added to it.
    ordered = sorted(wanted, key=lambda name: name != "attributes")
    return _Columns(
        len(names), {name: [names.index(each) for each in wanted[name]] for name in ordered}
    )


def _json(name: str, text: str) -> Any:  # noqa: ANN401  any JSON value
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        example = '["room 1"]' if name == "additionalResourceIds" else '{"note":"text"}'
        raise UnreadableError(f"{name} is not JSON such as {example}") from None


def _time(name: str, text: str, time_format: str) -> str:
    try:
        return datetime.strptime(text, time_format).isoformat()  # noqa: DTZ007  the zone is added
    except ValueError:
        raise UnreadableError(f"{name}: {text!r} is not a time like {time_format}") from None


def csv_lines(appointments: Iterable[Appointment]) -> Iterator[str]:
    """Write appointments as CSV with the names of the API's JSON."""
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(FIELDS)
    for appointment in appointments:
        values = values_of(appointment)
        for name in _JSON & values.keys():
            values[name] = json.dumps(values[name], ensure_ascii=False, separators=(",", ":"))
        writer.writerow(values.get(name, "") for name in FIELDS)
        yield _taken(written)
    yield _taken(written)


def _taken(written: io.StringIO) -> str:
    text = written.getvalue()
    written.seek(0)
    written.truncate()
    return text
