"""The command line: every verb is a function of the library; nothing heavy is imported before a verb needs it.

The only place that reads the environment, prints, and turns errors into messages.
"""

import sys

try:
    from pipelines.cli import browse, curation, export, forget, models, recipes, report, sweep, training
    from pipelines.cli.app import app, end_before_command, handle_interrupts
except KeyboardInterrupt:
    sys.stderr.write("stopped before anything was done\n")
    sys.exit(130)

__all__ = ["app", "browse", "curation", "export", "forget", "main", "models", "recipes", "report", "sweep", "training"]


def main() -> None:
    """Run the command line."""
    handle_interrupts(end_before_command)
    app(prog_name="winnow")
