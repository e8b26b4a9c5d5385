"""Commands as a user types them."""

from typer.testing import CliRunner

from simkit import cli

TINY = ["--set", "model.channels=8", "--set", "model.layers=1", "--set", "training.epochs=1"]
"""Settings of a training that takes no time."""


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command; an exception that a user would see as a traceback fails the test."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr
