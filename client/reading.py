"""The options of an import that say how its file is read."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any, BinaryIO, Literal, TypeVar
from zoneinfo import ZoneInfo

import click

from client.calendar_files import CalendarFile, Window
from client.csv_files import ATTRIBUTE, Layout, read_csv
from client.event import Placing
from client.json_lines import FIELDS, read_json_lines
from client.sources import FORMATS, Source, position_in

_YEAR = timedelta(days=365)
_DATE = click.DateTime(["%Y-%m-%d"])

Command = TypeVar("Command", bound=Callable[..., Any])


class Zone(click.ParamType[ZoneInfo]):
    """A name of the IANA time zone database."""

    name = "zone"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> ZoneInfo:
        """Return the zone."""
        try:
            return ZoneInfo(str(value))
        except (KeyError, ValueError, OSError):  # OSError: a folder of the database
            self.fail(f"{value} is not a time zone such as Europe/Brussels", param, ctx)


class Encoding(click.ParamType[str]):
    """A name of a text encoding that Python knows."""

    name = "encoding"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the name."""
        try:
            return codecs.lookup(str(value)).name
        except LookupError:
            self.fail(f"{value} is not an encoding such as cp1252", param, ctx)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a file is read. Its text is the same for the same options."""

    format: str | None
    time_zone: ZoneInfo | None
    column: tuple[str, ...]
    delimiter: str | None
    encoding: str
    time_format: str | None
    resource: str | None
    resource_from: Literal["location", "calendar"] | None
    from_: datetime | None
    to: datetime | None

    @classmethod
    def options(cls, command: Command) -> Command:
        """Give a command these options, as arguments of the same names."""
        for option in reversed(
            (
                click.option(
                    "--format", type=click.Choice(list(FORMATS)), help="[default: by name]"
                ),
                click.option(
                    "--time-zone",
                    type=Zone(),
                    help="Of times without one, such as Europe/Brussels.",
                ),
                click.option(
                    "--column",
                    multiple=True,
                    metavar="FIELD=HEADER",
                    help="CSV: the column of a field, such as start=Begin or"
                    " attributes.phone=Telephone. Repeated for a date and a time.",
                ),
                click.option(
                    "--delimiter",
                    help="CSV. [default: that of , ; | and tab which the header has most]",
                ),
                click.option(
                    "--encoding", type=Encoding(), default="utf-8-sig", help="CSV. [default: UTF-8]"
                ),
                click.option(
                    "--time-format",
                    help="CSV: of times, such as '%d/%m/%Y %H:%M'. [default: ISO 8601]",
                ),
                click.option("--resource", help="iCalendar: what the events occupy."),
                click.option(
                    "--resource-from",
                    type=click.Choice(["location", "calendar"]),
                    help="iCalendar: the property that names what the events occupy.",
                ),
                click.option(
                    "--from",
                    "from_",
                    type=_DATE,
                    help="iCalendar: nothing that ends before. [recurring events: a year ago]",
                ),
                click.option(
                    "--to",
                    type=_DATE,
                    help="iCalendar: nothing that starts later. [recurring events: in a year]",
                ),
            )
        ):
            command = option(command)
        return command

    @property
    def window(self) -> Window:
        """What is imported of an iCalendar file. It changes with the day unless it is given."""
        today = datetime.combine(datetime.now(UTC).date(), time.min, tzinfo=UTC)
        return Window(
            start=self.from_.replace(tzinfo=UTC) if self.from_ else today - _YEAR,
            end=self.to.replace(tzinfo=UTC) if self.to else today + _YEAR,
            for_all=self.from_ is not None or self.to is not None,
        )

    def source(self, file: BinaryIO, format_: str) -> Source:
        """Return what reads a file of a format. Raises UsageError if an option is wrong."""
        position = position_in(file)
        if format_ == "csv":
            if self.delimiter is not None and len(self.delimiter) != 1:
                raise click.UsageError("--delimiter is one character")
            layout = Layout(
                columns=_columns(self.column),
                delimiter=self.delimiter,
                encoding=self.encoding,
                time_format=self.time_format,
            )
            return Source(items=read_csv(file, self.time_zone, layout), position=position)
        if format_ == "ics":
            if self.resource is not None and self.resource_from is not None:
                raise click.UsageError("--resource and --resource-from exclude each other")
            placing = Placing(resource=self.resource, source=self.resource_from)
            calendar = CalendarFile(file, self.time_zone, placing, self.window)
            return Source(items=calendar.items(), position=calendar.position)
        return Source(items=read_json_lines(file, self.time_zone), position=position)


def _columns(given: Sequence[str]) -> dict[str, list[str]]:
    """Read the options --column. Raises UsageError."""
    columns: dict[str, list[str]] = {}
    for each in given:
        name, _, header = each.partition("=")
        if not header or not (name in FIELDS or name.startswith(ATTRIBUTE)):
            raise click.UsageError(
                f"--column {each}: write FIELD=HEADER, with one of the fields {', '.join(FIELDS)},"
                f" or {ATTRIBUTE}NAME"
            )
        columns.setdefault(name, []).append(header)
    return columns
