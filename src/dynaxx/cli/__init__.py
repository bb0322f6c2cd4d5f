"""The command line: thin commands, each imported when it is called, so that `--help` is instant."""

import sys
import traceback
from importlib import import_module
from pathlib import Path

import click

from dynaxx._version import __version__
from dynaxx.errors import BadInput, DynaxxError

DONE, FAILED, BAD_INPUT, FINDING, INTERRUPTED = range(5)
"""Exit codes: done; failed; bad input, said in one line; a finding or an action stopped it; interrupted and saved."""


class _Commands(click.Group):
    """One file in this folder is one command; its name is the file's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        del ctx
        return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        return import_module(f"dynaxx.cli.{cmd_name}").command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dynaxx")
def cli() -> None:
    """Instrument, map, navigate and diagnose the training of neural networks with PyTorch."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: The words after `dynaxx`; None: those of the process.
    """
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command line.

    Args:
        arguments: The words after `dynaxx`.

    Returns:
        The exit code.
    """
    try:
        result = cli.main(arguments, prog_name="dynaxx", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return BAD_INPUT
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}", err=True)
        return BAD_INPUT
    except BadInput as error:
        click.echo(f"Error: {error}", err=True)
        return BAD_INPUT
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except DynaxxError as error:
        click.echo(f"Failed: {error}", err=True)
        return FAILED
    except Exception:
        traceback.print_exc()
        return FAILED
    return result if isinstance(result, int) else DONE
