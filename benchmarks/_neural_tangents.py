"""neural-tangents 0.6.5 on a JAX that is years younger: lent what it misses for a while, and given back."""

import contextlib
import importlib
import sys
import types
import warnings
from unittest import mock

import jax
import jax.interpreters.ad as ad
import jax.numpy as jnp
from jax.extend import core

MISSING = ("Jaxpr", "JaxprEqn", "Literal", "Var", "Primitive")


@contextlib.contextmanager
def neural_tangents():
    """Lend the library, with its three empirical kernels able to run; trace and call them inside this context.

    JAX itself is as before once the import is over. The few functions of the library that reach into JAX's
    interpreters are replaced by ones on public transformations, until the context ends.
    """
    library = _imported()
    empirical = importlib.import_module("neural_tangents._src.empirical")
    replaced = {
        "_get_primals_out_and_pullback": _primals_out_and_pullback(empirical),
        "_eqn_vjp_fn": _equation_vjp,
        "_eqn_jvp_fn": _equation_jvp,
        "core": _Lent(jax.core, DShapedArray=type("NoSuchArray", (), {})),
        "ad": _Lent(ad, source_info_util=_NO_NAMES, config=types.SimpleNamespace(jax_enable_checks=False)),
    }
    with mock.patch.multiple(empirical, **replaced):
        yield library


class _Lent:
    """A module seen with some names added, without touching the module."""

    def __init__(self, module, **names):
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name):
        return getattr(self._module, name)


_NO_NAMES = types.SimpleNamespace(transform_name_stack=lambda name: contextlib.nullcontext())


def _imported():
    if "neural_tangents" in sys.modules:
        return sys.modules["neural_tangents"]
    util = types.ModuleType("jax.util")
    util.safe_map = lambda f, *xs: list(map(f, *xs))
    util.safe_zip = lambda *xs: list(zip(*xs, strict=True))
    # Its experimental part imports TensorFlow, and nothing else needs it.
    experimental = types.ModuleType("neural_tangents.experimental")
    absent = {name: getattr(core, name) for name in MISSING if not _has(jax.core, name)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        modules = {"jax.util": util, "neural_tangents.experimental": experimental}
        for name, module in modules.items():
            sys.modules[name] = module
            stack.callback(sys.modules.pop, name, None)
        for name, value in absent.items():
            stack.enter_context(mock.patch.object(jax.core, name, value, create=True))
        stack.enter_context(mock.patch.object(jax, "util", util, create=True))
        stack.enter_context(mock.patch.object(ad, "zeros_like_p", core.Primitive("zeros_like"), create=True))
        return importlib.import_module("neural_tangents")


def _has(module, name):
    try:
        return hasattr(module, name)
    except Exception:
        return False


def _primals_out_and_pullback(empirical):
    """The library's backward pass over the tangent program that `jax.linearize` makes."""

    def primals_out_and_pullback(function, mode, j_rules, s_rules, forward, *primals):
        # Its rules know primitives, not calls of jitted functions.
        with jax.disable_jit():
            out, tangent = jax.linearize(function, *primals)
            closed = jax.make_jaxpr(tangent)(*primals)
        arguments = [ad.UndefinedPrimal(variable.aval) for variable in closed.jaxpr.invars]

        def pullback(*cotangents):
            results = empirical._backward_pass(
                closed.jaxpr,
                mode=mode,
                consts=closed.consts,
                primals_in=arguments,
                cotangents_in=jax.tree.leaves(cotangents),
                _j_rules=j_rules,
                _s_rules=s_rules,
                _fwd=forward,
            )
            return jax.tree.unflatten(jax.tree.structure(primals), results)

        return out, pullback

    return primals_out_and_pullback


def _equation_vjp(equation, cotangent, *values):
    """Cotangents of the linear operands of one equation of a tangent program, None for the others."""
    if equation is None:
        return (cotangent,)
    linear = [i for i, value in enumerate(values) if ad.is_undefined_primal(value)]
    if isinstance(cotangent, ad.Zero):
        return ad.Zero

    def function(*operands):
        arguments = list(values)
        for i, operand in zip(linear, operands, strict=True):
            arguments[i] = operand
        return _bind(equation, arguments)

    shapes = [jax.ShapeDtypeStruct(values[i].aval.shape, values[i].aval.dtype) for i in linear]
    found = dict(zip(linear, jax.linear_transpose(function, *shapes)(cotangent), strict=True))
    return [found.get(i) for i in range(len(values))]


def _equation_jvp(equation, index, tangent, *values):
    """One equation applied to a tangent in place of operand `index`, the other linear operands being zero."""
    if equation is None:
        return tangent
    arguments = [_known(value) for value in values]
    arguments[index] = tangent
    return _bind(equation, arguments)


def _known(value):
    if ad.is_undefined_primal(value):
        return jnp.zeros(value.aval.shape, value.aval.dtype)
    if isinstance(value, jax.core.ShapedArray):
        return jnp.zeros(value.shape, value.dtype)
    return value


def _bind(equation, arguments):
    result = equation.primitive.bind(*arguments, **equation.params)
    return result[0] if equation.primitive.multiple_results else result
