"""Everything Winnow raises for its user to act on.

WinnowError
  InputError            a file, flag or value the user gave cannot be used
    RecipeError         a recipe is wrong at a line of a file
    MissingColumnsError a rule or operator reads columns that no finished annotation provides
  ContractError         an operator returned something other than what it declared
  StaleDatasetError     a file on disk is not the one its index or header describes
  ShardError            shards failed after every retry; the others are committed
"""

from collections.abc import Mapping


class WinnowError(Exception):
    """Base of every error that the command line prints as one message instead of a traceback."""


class InputError(WinnowError, ValueError):
    """A file, flag or value the user gave cannot be used; the message names it and the remedy."""


class RecipeError(InputError):
    """A recipe is wrong; the message starts with `file:line:`."""


class MissingColumnsError(InputError):
    """A rule or an operator reads columns that no finished annotation provides; the message prints the command that makes them."""


class ContractError(WinnowError):
    """An operator returned columns, types or row counts other than those it declares."""


class StaleDatasetError(WinnowError):
    """A file on disk does not match the digest or the count recorded for it."""


class ShardError(WinnowError):
    """Some shards failed after every retry; `failures` maps the shard's name to its last error."""

    def __init__(self, message: str, failures: Mapping[str, str]) -> None:
        super().__init__(message)
        self.failures = dict(failures)
