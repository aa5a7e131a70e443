"""Imports that may fail because something is not installed: the error says in one line what to install."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from ntkp2p.base.errors import MissingPackageError

#: For each extra, the packages that this library imports from it.
EXTRAS = {
    "cluster": ("distributed",),
    "infinite": ("neural-tangents",),
    "notebooks": ("ipywidgets",),
    "optimal": ("cvxpy", "clarabel"),
}
Extra = Literal["cluster", "infinite", "notebooks", "optimal"]


@contextmanager
def needed(purpose: str, extra: Extra | None = None, /) -> Iterator[None]:
    """A block of imports only. If one of them fails, a MissingPackageError says what to install.

    Parameters
    ----------
    purpose
        What needs these packages: the subject of the message.
    extra
        The extra that installs them; None for packages that every installation should have.

    Raises
    ------
    MissingPackageError
        If a package is not installed, or is installed but cannot be imported.
    """
    try:
        yield
    except Exception as error:  # a broken package may raise anything
        raise MissingPackageError(_remedy(purpose, extra, error), name=getattr(error, "name", None)) from error


def missing(error: BaseException) -> str | None:
    """The package that is not installed, if that is the reason for an error."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    # The parent of a missing submodule has been imported: it is installed, in a version without that module.
    return package if isinstance(error, ModuleNotFoundError) and package and not sys.modules.get(package) else None


def _remedy(purpose: str, extra: Extra | None, error: Exception) -> str:
    package, packages = missing(error), EXTRAS[extra] if extra else ()
    if package and extra:
        names = " and ".join(packages)
        return f"{purpose} needs {names}, but {package} is not installed: pip install 'ntkp2p[{extra}]'"
    if package:
        return f"{purpose} needs {package}, which is not installed: pip install {package}"
    reason = " ".join(str(error).split()) or type(error).__name__
    again = f"pip install --force-reinstall {' '.join(packages)}" if packages else "make a new environment"
    return f"{purpose} needs packages that are installed but cannot be imported ({reason}): {again}"
