"""Tables of named choices that also take ``"package.module:Name"``, a choice from a user's module."""

import inspect
import sys
import zlib
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from ntkp2p.base.checks import lookup, suggestion
from ntkp2p.base.errors import InputError, InputTypeError

Choice = TypeVar("Choice", bound=Callable)


class Registry(dict[str, Choice]):
    """Functions and classes by name; ``registry["package.module:Name"]`` imports the module and returns its `Name`.

    Parameters
    ----------
    kind
        What it lists, in the singular: ``"graph"``. It begins the messages.
    known
        The choices that have a name of their own.
    makes
        The type of what a choice returns; None if a choice is not called through `make`.

    Raises
    ------
    InputError
        From a look-up: if the name is unknown, if Python does not find the module or one that it imports, or if the
        module has no such attribute. Any other error raised while the module is imported is left as it is.
    InputTypeError
        From a look-up: if what was found cannot be called, or is a class of another kind.

    Notes
    -----
    Modules are found as Python finds them: in installed packages, in the folders of ``PYTHONPATH``, and from the shell
    in the current folder.

    Examples
    --------
    >>> from ntkp2p.base.registry import Registry
    >>> graphs = Registry("graph", {"cycle": list})
    >>> graphs["cycle"]
    <class 'list'>
    >>> graphs["collections:Counter"]
    <class 'collections.Counter'>
    >>> graphs["cycel"]
    Traceback (most recent call last):
    ...
    ntkp2p.InputError: unknown graph 'cycel' (did you mean 'cycle'?); known: cycle, package.module:Name
    """

    def __init__(self, kind: str, known: Mapping[str, Choice], makes: type | None = None):
        super().__init__(known)
        self.kind, self.makes = kind, makes

    def __getitem__(self, name: Any, /) -> Choice:
        if isinstance(name, str) and name in self:
            return super().__getitem__(name)
        module, _, attribute = name.partition(":") if isinstance(name, str) else ("", "", "")
        if not all(map(str.isidentifier, (*module.split("."), attribute))):
            lookup(dict.fromkeys([*self, "package.module:Name"]), name, self.kind)  # refuses it
        return self._imported(name, module, attribute)

    def make(self, name: str, /, **arguments: Any) -> Any:
        """Call the choice of that name, and check the type of what it returns.

        Parameters
        ----------
        name
            As for a look-up.
        **arguments
            The arguments by name, those of positional-only parameters too.

        Raises
        ------
        InputError, InputTypeError
            As a look-up does, or if the choice returns something else than it should.
        """
        choice = self[name]
        first, others = in_order(choice, arguments)
        made = choice(*first, **others)
        if self.makes is not None and not isinstance(made, self.makes):
            raise InputTypeError(
                f"{self.kind} {name!r} returns {type(made).__name__}: it must return {self.makes.__name__}"
            )
        return made

    def _imported(self, name: str, module: str, attribute: str) -> Any:
        asked = f"{self.kind} {name!r}"
        try:
            found = import_module(module)
        except ModuleNotFoundError as error:
            if not (error.name and f"{module}.".startswith(f"{error.name}.")):
                raise InputError(f"{asked}: {module} imports {error.name}, which is not installed") from error
            hint = suggestion(module, self) or ": add its folder to PYTHONPATH"
            raise InputError(f"{asked}: no module {module!r}{hint}") from error
        if not hasattr(found, attribute):
            raise InputError(f"{asked}: {module!r} has no {attribute!r}{suggestion(attribute, dir(found))}")
        choice: Any = getattr(found, attribute)
        if not callable(choice):
            raise InputTypeError(f"{asked} is {choice!r}, which cannot be called: name a function or a class")
        if isinstance(choice, type) and self.makes is not None and not issubclass(choice, self.makes):
            raise InputTypeError(f"{asked} is a class that is no {self.makes.__name__}: derive it from that")
        if inspect.isabstract(choice):
            raise InputTypeError(f"{asked} does not define {', '.join(sorted(choice.__abstractmethods__))}")
        return choice


def sources_in(tables: Any, /) -> dict[str, int]:
    """CRC-32 of the source of every loaded module that nested tables name in ``"package.module:Name"``."""
    if isinstance(tables, Mapping | list | tuple):
        inner = tables.values() if isinstance(tables, Mapping) else tables
        return {module: crc for each in inner for module, crc in sources_in(each).items()}
    module = tables.partition(":")[0] if isinstance(tables, str) and ":" in tables else ""
    path = getattr(sys.modules.get(module), "__file__", None)
    return {module: zlib.crc32(Path(path).read_bytes())} if path else {}


def parameters_of(choice: Callable, /) -> dict[str, inspect.Parameter]:
    """The parameters that have a name, without ``*args`` and ``**kwargs``."""
    parameters = inspect.signature(choice).parameters
    return {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def in_order(choice: Callable, arguments: Mapping[str, Any], /) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by name as a call takes them: those of positional-only parameters, and the others by name."""
    first = [name for name, p in parameters_of(choice).items() if p.kind is p.POSITIONAL_ONLY and name in arguments]
    return [arguments[name] for name in first], {name: v for name, v in arguments.items() if name not in first}
