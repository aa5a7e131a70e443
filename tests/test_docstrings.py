"""The documentation audits itself: no public name without it, no parameter left out or made up, no example that fails.

Public is what `ntkp2p.__all__` reaches (a module's own `__all__`, or what it defines), the packages' `__all__`, and
our classes that any of these return, inherit from or keep in fields.
"""

import dataclasses
import doctest
import enum
import importlib
import inspect
import pkgutil
import re
import sys
import types
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import docstring_parser
import pytest

import ntkp2p


def is_ours(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "").partition(".")[0] == "ntkp2p"


# Importing __main__ would run the command line.
MODULES = [
    "ntkp2p",
    *(m.name for m in pkgutil.walk_packages(ntkp2p.__path__, "ntkp2p.") if m.name != "ntkp2p.__main__"),
]


def names_of(module: types.ModuleType) -> list[str]:
    """Its `__all__`, or what it defines without an underscore."""
    own = (n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__ and callable(v))
    return list(getattr(module, "__all__", [name for name in own if not name.startswith("_")]))


def named_in(annotation: Any, package: str) -> Iterator[tuple[str, type]]:
    """Our classes that an annotation names, which may be a text, by where they are defined."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    for word in re.findall(r"[A-Z]\w+", text):
        value = vars(sys.modules[package]).get(word)
        if inspect.isclass(value) and is_ours(value):
            yield f"{value.__module__}.{value.__qualname__}", value


def led_to(thing: Any) -> Iterator[tuple[str, type]]:
    """Our classes that a function returns, or a class builds on, keeps in its fields, and returns from its methods."""
    if not inspect.isclass(thing):
        yield from named_in(inspect.signature(thing).return_annotation, thing.__module__)
        return
    yield from ((f"{base.__module__}.{base.__qualname__}", base) for base in thing.__bases__ if is_ours(base))
    for annotation in inspect.get_annotations(thing).values():
        yield from named_in(annotation, thing.__module__)
    for _, method in members(thing):
        if callable(method):
            yield from named_in(inspect.signature(method).return_annotation, thing.__module__)


def public() -> dict[str, Any]:
    """What is public, once each, by the name that a reader looks for it under."""
    found: dict[str, Any] = {}
    packages = {name: importlib.import_module(name) for name in MODULES}
    waiting = [(name, package) for name, package in packages.items() if hasattr(package, "__all__")]
    while waiting:
        name, thing = waiting.pop(0)
        if any(thing is known for known in found.values()):
            continue
        found[name] = thing
        if inspect.ismodule(thing):
            waiting += [(f"{name}.{each}", getattr(thing, each)) for each in names_of(thing)]
        elif callable(thing) and is_ours(thing):
            waiting += led_to(thing)
    return {n: t for n, t in found.items() if inspect.ismodule(t) or (callable(t) and is_ours(t))}


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class itself defines; its own bases are public, too."""
    for name in vars(cls):
        if not name.startswith("_") and name not in fields_of(cls):
            yield name, getattr(cls, name)


def fields_of(cls: type) -> list[str]:
    if dataclasses.is_dataclass(cls):
        return [f.name for f in dataclasses.fields(cls) if not f.name.startswith("_")]
    return list(getattr(cls, "_fields", ()))


def overridden(cls: type, name: str) -> Any:
    """The member of one of our own classes in whose place that of `cls` is; None where there is none."""
    return next((getattr(base, name) for base in cls.__mro__[1:] if is_ours(base) and name in vars(base)), None)


def documented(text: str, *sections: str) -> set[str]:
    """The names in some sections of a docstring, such as `a, b` or `**options`."""
    parsed = docstring_parser.parse(inspect.cleandoc(text), style=docstring_parser.DocstringStyle.NUMPYDOC)
    items = [m for m in parsed.meta if isinstance(m, docstring_parser.DocstringParam) and m.args[0] in sections]
    return {name.strip().lstrip("*") for item in items for name in item.arg_name.split(",")}


def summary(text: str) -> str:
    return inspect.cleandoc(text).partition("\n\n")[0]


def parameters_of(function: Callable) -> list[str]:
    names = inspect.signature(function).parameters
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def faults_of_parameters(where: str, function: Callable, text: str) -> Iterator[str]:
    asked, told = parameters_of(function), documented(text, "param")
    for name in asked:
        if name not in told:
            yield f"{where}: parameter {name!r} is not documented: add it to the section Parameters"
    for name in sorted(told - set(asked)):
        yield f"{where}: there is no parameter {name!r} as documented: it has {', '.join(asked) or 'none'}"


def faults_of_method(where: str, cls: type, name: str) -> Iterator[str]:
    method, base = getattr(cls, name), overridden(cls, name)
    asked, own = parameters_of(method), method.__doc__ or ""
    text = own or getattr(base, "__doc__", None)
    if not text:
        yield f"{where}: this method is not documented: give it a docstring"
    elif base is not None and len(asked) == len(parameters_of(base)) and not documented(own, "param"):
        return  # they are those of what it overrides, by whatever names
    elif not (len(asked) == 1 and f"`{asked[0]}`" in summary(text)):
        yield from faults_of_parameters(where, method, text)


def constructor_of(cls: type) -> list[str]:
    """Parameters of its own constructor: an exception is caught and not built, a member of an enumeration is there."""
    if issubclass(cls, BaseException | enum.Enum) or not (fields_of(cls) or is_ours(vars(cls).get("__init__"))):
        return []
    return parameters_of(cls)


def faults_of_class(where: str, cls: type) -> Iterator[str]:
    text = vars(cls)["__doc__"]
    built, told = constructor_of(cls), documented(text, "param")
    for name in dict.fromkeys([*built, *fields_of(cls)]):
        if name not in told | documented(text, "attribute"):
            yield f"{where}: parameter {name!r} is not documented: add it to the section Parameters or Attributes"
    for name in sorted(told - set(built)):
        yield f"{where}: there is no parameter {name!r} as documented: it has {', '.join(built) or 'none'}"
    # An exception keeps what it was built with.
    kept = parameters_of(vars(cls)["__init__"]) if "__init__" in vars(cls) else ()
    has = {*dir(cls), *fields_of(cls), *inspect.get_annotations(cls), *kept}
    for name in sorted(documented(text, "attribute") - has):
        yield f"{where}: there is no attribute {name!r} as documented"
    for name in getattr(cls, "__members__", ()):
        if f"`{name}`" not in text:
            yield f"{where}: member {name!r} is not documented: name it in the docstring, in backticks"
    for name, member in members(cls):
        if callable(member):
            yield from faults_of_method(f"{where}.{name}", cls, name)
        elif isinstance(member, property | cached_property) and not (
            member.__doc__ or getattr(overridden(cls, name), "__doc__", None)
        ):
            yield f"{where}.{name}: this property is not documented: give it a docstring"


def faults(where: str, thing: Any) -> list[str]:
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    # A dataclass without documentation has its signature for one.
    if not text or text.startswith(f"{getattr(thing, '__name__', '')}("):
        return [f"{where}: it is not documented: give it a docstring"]
    if inspect.isclass(thing):
        return list(faults_of_class(where, thing))
    return [] if inspect.ismodule(thing) else list(faults_of_parameters(where, thing, text))


def test_what_is_public_is_documented():
    found = public()
    assert {
        "ntkp2p.train",
        "ntkp2p.DGD",
        "ntkp2p.clocks.in_blocks",
        "ntkp2p.analysis.stability_map.StabilityMap",
    } <= set(found)
    every = [fault for name, thing in found.items() for fault in faults(name, thing)]
    assert not every, "\n".join(["", *every])


def examples(module: types.ModuleType) -> list[doctest.DocTest]:
    """Those of a module, its functions and classes, each on its own: what it needs it imports."""
    own = {n: v for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__ and callable(v)}
    # Told module=False, the finder does not pass over functions that another module's decorator has wrapped.
    finder = doctest.DocTestFinder()
    found = [t for n, v in own.items() for t in finder.find(v, n, module=False, globs={}) if "._" not in t.name]
    text = doctest.DocTestParser().get_doctest(module.__doc__ or "", {}, module.__name__, None, 0)
    return [text, *found]


def failures(module: types.ModuleType, chosen: Callable[[str], bool] = lambda name: True) -> str:
    """What goes wrong in a module's examples, or in those whose names are chosen."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    for example in examples(module):
        if chosen(example.name):
            runner.run(example, out=report.append)
    return "".join(report)


#: Whose examples need a package that only an extra installs.
NEEDING = {"fastest_mixing": "cvxpy"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name}: this module is not documented: say in its docstring what it answers"
    found = failures(module, lambda name: name not in NEEDING)
    assert not found, found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.needs(package)) for name, package in NEEDING.items()]
)
def test_examples_that_need_a_package_run(name):
    module = sys.modules[getattr(ntkp2p, name).__module__]
    assert name in [example.name for example in examples(module)]
    found = failures(module, lambda other: other == name)
    assert not found, found


@dataclasses.dataclass
class Faulty:
    """Two numbers.

    Attributes
    ----------
    first
        One of them.
    third
        There is none.
    """

    first: int
    second: int

    def swapped(self, twice):
        """The same two, swapped, or `twice`."""

    def shifted(self, by, back):
        """Both shifted.

        Parameters
        ----------
        by
            How far.
        """

    def bare(self, x):
        pass

    @property
    def total(self):
        return self.first + self.second


def test_faults_of_a_class_are_found():
    assert [fault.partition(": add it")[0].partition(": give it")[0] for fault in faults("module.Faulty", Faulty)] == [
        "module.Faulty: parameter 'second' is not documented",
        "module.Faulty: there is no attribute 'third' as documented",
        "module.Faulty.shifted: parameter 'back' is not documented",
        "module.Faulty.bare: this method is not documented",
        "module.Faulty.total: this property is not documented",
    ]


def test_faults_of_a_function_are_found():
    def scaled(x, **options):
        """Scale it.

        Parameters
        ----------
        **options
            Whatever there is.
        factor
            By how much.
        """

    def silent(x):
        pass

    assert faults("module.scaled", scaled) == [
        "module.scaled: parameter 'x' is not documented: add it to the section Parameters",
        "module.scaled: there is no parameter 'factor' as documented: it has x, options",
    ]
    assert faults("module.silent", silent) == ["module.silent: it is not documented: give it a docstring"]


def test_an_example_that_fails_is_found():
    right, wrong = (types.ModuleType("module", f">>> 1 + 1\n{answer}\n") for answer in (2, 3))
    assert not failures(right)
    assert "Expected:\n    3\nGot:\n    2" in failures(wrong)
