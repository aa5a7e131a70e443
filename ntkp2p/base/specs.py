"""Calls in one word: ``erdos_renyi:20,0.3,seed=1`` is a name in a registry, and its arguments."""

import inspect
from collections.abc import Iterator, Mapping

from ntkp2p.base.checks import real_in, whole_in
from ntkp2p.base.errors import InputError
from ntkp2p.base.registry import Registry, parameters_of

Parameters = Mapping[str, inspect.Parameter]


def named_in(registry: Registry, spec: str, /) -> tuple[str, str | None]:
    """The name in a spec, and the text after its colon; None if there is no colon.

    In ``a:b`` the name is `a` where the registry has it or `b` cannot be the name of a function; otherwise it is
    ``a:b``, a function in a user's module. In ``a:b:c`` it is always ``a:b``.
    """
    name, *rest = (part.strip() for part in spec.split(":"))
    if len(rest) == 2 or (len(rest) == 1 and name not in registry and rest[0].isidentifier()):
        name = f"{name}:{rest.pop(0)}"
    return name, ":".join(rest) if rest else None


def arguments_of(registry: Registry, spec: str, /) -> tuple[str, dict[str, int | float]]:
    """The name in a spec, and the arguments by name.

    Raises
    ------
    InputError
        If the name is unknown, or an argument is missing, is not a number, or does not belong to the function.
    """
    name, text = named_in(registry, spec)
    words = [word.strip() for word in text.split(",")] if text else []
    parameters = parameters_of(registry[name])
    values = {}
    for word, (parameter, number) in zip(words, _assigned(words, parameters), strict=True):
        if parameter not in parameters or parameter in values:
            raise InputError(f"{spec!r}: cannot place {word!r}; write {_usage(name, parameters)}")
        values[parameter] = _number(spec, parameter, number, parameters[parameter].annotation)
    if missing := [p for p in required(parameters) if p not in values]:
        raise InputError(f"{spec!r} lacks {', '.join(missing)}; write {_usage(name, parameters)}")
    return name, values


def required(parameters: Parameters, /) -> list[str]:
    """The names of the parameters without a default."""
    return [name for name, p in parameters.items() if p.default is p.empty]


def _assigned(words: list[str], parameters: Parameters) -> Iterator[tuple[str, str]]:
    """Pair each word of a spec with its parameter: by position, or by name where it has an =."""
    positions = iter(required(parameters))
    for word in words:
        before, equals, after = (part.strip() for part in word.partition("="))
        yield (before, after) if equals else (next(positions, ""), word)


def _usage(name: str, parameters: Parameters) -> str:
    needed = required(parameters)
    optional = [f"[,{p}=…]" for p in parameters if p not in needed]
    return f"{name}:{','.join(needed)}{''.join(optional)}"


def _number(spec: str, parameter: str, text: str, annotation: object) -> int | float:
    annotation = getattr(annotation, "__metadata__", (annotation,))[0]
    both = (whole_in, real_in)
    kinds = {"int": both[:1], "float": both[1:]}.get(getattr(annotation, "__name__", str(annotation)), both)
    for number_in in kinds:
        if (number := number_in(text)) is not None:
            return number
    wanted = "a number" if real_in in kinds else "a whole number"
    raise InputError(f"{spec!r}: {parameter} is {wanted}, got {text!r}")
