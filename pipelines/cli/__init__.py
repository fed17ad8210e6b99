"""The command line: every verb is a function of the library; nothing heavy is imported before a verb needs it.

The only place that reads the environment, prints, and turns errors into messages.
"""

from pipelines.cli import curation, training
from pipelines.cli.app import app

__all__ = ["app", "curation", "main", "training"]


def main() -> None:
    """Run the command line."""
    app(prog_name="winnow")
