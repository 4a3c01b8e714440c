"""`python -m client`: the command line."""

import os
import sys

import click

from client.errors import INTERRUPTED, CommandError
from client.export_command import export_command
from client.import_command import import_command
from client.watch_command import watch_command


@click.group()
def client() -> None:
    """Import, export and watch the appointments of one organization.

    With access control, the API key or token comes from the variable APPOINTMENTS_TOKEN or from a
    file.
    """


client.add_command(import_command)
client.add_command(export_command)
client.add_command(watch_command)


def main() -> None:
    """Run the command. Errors are one line."""
    try:
        client(prog_name="python -m client")
    except CommandError as error:
        click.echo(f"client: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Nobody reads the rest. Python would complain when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
