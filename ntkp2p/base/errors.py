"""Exceptions that report a user's mistake: the message says what was found and what to do.

The command line prints the message in one line and exits with code 2. Any other exception, apart from those of the
operating system, is a defect of the program.
"""


class UnstableWarning(UserWarning):
    """The linear model's rounds diverge in a prediction."""

    __module__ = "ntkp2p"


class InputError(ValueError):
    """A value, a file or a combination that cannot be used."""

    __module__ = "ntkp2p"  # as users import it


class InputTypeError(InputError, TypeError):
    """A value of a type that cannot be used."""


class MissingPackageError(ImportError, InputError):
    """A package that is not installed, or that cannot be imported."""


class NotConvergedError(InputError, ArithmeticError):
    """An iteration that ended before it reached the tolerance that was asked for."""
