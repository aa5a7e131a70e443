r"""The layers of a network, found in its own program, and what each gives to the tangent kernel.

A weight that is used once, in one product h_t = W' a_t with the rows a_1 … a_T of one sample (a dense layer: T = 1; a
layer over tokens; a convolution: the T windows that its filter sees), has the Jacobian ∂f/∂W = Σ_t a_t ⊗ δ_t with
δ_t = ∂f/∂h_t. Its share of the kernel of two samples can be had in two ways, and the one with fewer multiplications is
taken, by count:

    from small Grams   Σ_{t,s} (a_t · a'_s) (δ_t · δ'_s)      T² (n + C² m + C²) a pair
    from Jacobians     ⟨Σ_t a_t ⊗ δ_t, Σ_s a'_s ⊗ δ'_s⟩        C² n m a pair, and C T n m a sample

for W of n × m entries and C outputs. A bias that is added to the product is one more row of W. Weights are found in the
jaxpr of one sample, so that any network profits and nothing has to be declared; scalings, transpositions and reshapes
of a weight on its way to the product are seen through. Every other leaf goes through its Jacobian, by reverse mode.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from jax.extend.core import Literal as Constant
from jaxtyping import Array, Float, PyTree

from ntkp2p.base.errors import InputError

Apply = Callable[[PyTree, Array], Array]
#: Bytes of activations that are evaluated together: what stays near the caches.
TOGETHER = 2**26
#: Samples below which halves of a product cost more than they save.
UNDIVIDED = 128


class Factors(NamedTuple):
    """What the samples of a block give to the kernel.

    `inputs[l]` of shape (N, T, n) and `deltas[l]` of shape (N, C, T, m) for layers in Gram form; `jacobian` of shape
    (N, C, p) for all else, side by side.
    """

    inputs: list[Float[Array, "N _ _"]]
    deltas: list[Float[Array, "N C _ _"]]
    jacobian: Float[Array, "N C p"]


class Layer(NamedTuple):
    """A weight's only product.

    Attributes
    ----------
    leaves
        The weight's position among the leaves of θ, and its bias's if it has one.
    step, vector
        The step of the program that is the product, and the position in it of what the weight acts on.
    inputs, deltas
        The vector ↦ its rows (T, n); a cotangent of the product ↦ its rows (T, m).
    shape
        (T, n, m), n counting the bias.
    scale
        What the weight is multiplied with on its way.
    column
        The constant that the bias acts on, relative to the product; None without a bias.
    """

    leaves: tuple[int, ...]
    step: int
    vector: int
    inputs: Callable[[Array], Array]
    deltas: Callable[[Array], Array]
    shape: tuple[int, int, int]
    scale: float
    column: float | None

    def in_gram_form(self, outputs: int, shared: bool, samples: int) -> bool:
        """Whether small Grams take fewer multiplications than Jacobians, for a kernel of that many samples."""
        rows, n, m = self.shape
        pairs = outputs if shared else outputs**2
        gram = rows**2 * (n + pairs * m + pairs)
        return samples * gram < samples * pairs * n * m + 2 * outputs * rows * n * m

    def entries(self, outputs: int, gram: bool) -> int:
        """Numbers that a sample's factors take."""
        rows, n, m = self.shape
        return rows * (n + outputs * m) if gram else outputs * n * m


@dataclass(frozen=True)
class Factorisation:
    """How a network's kernel is computed.

    Attributes
    ----------
    of
        `(leaves, x) -> Factors`, for the leaves of θ and a batch of inputs.
    together
        How many samples to hand it at a time.
    outputs
        C, how many the network has.
    entries
        Numbers that a sample's factors take.
    layers
        How many weights are in Gram form, and in Jacobian form; the leaves that are neither.
    """

    of: Callable[[list, Array], Factors]
    together: int
    outputs: int
    entries: int
    layers: tuple[int, int, int]


def factorise(apply: Apply, params: PyTree, x: Any, /, *, samples: int, shared: bool) -> Factorisation:
    """Find the layers of a network, for one input x (a `ShapeDtypeStruct` will do) of a kernel of that many samples."""
    leaves, structure = jax.tree.flatten(params)

    def output(leaves, x):
        return apply(jax.tree.unflatten(structure, leaves), x[None])[0]

    closed = jax.make_jaxpr(output)(leaves, x)
    if len(shape := closed.out_avals[0].shape) != 1:
        raise InputError(f"apply must return outputs of shape (N, C), found {(1, *shape)} for one sample")
    program = unroll(closed)
    layers = find_layers(program, [leaf.shape for leaf in leaves])
    taken = {leaf for layer in layers for leaf in layer.leaves}
    others = [i for i in range(len(leaves)) if i not in taken]
    count, dtype = closed.out_avals[0].shape[0], closed.out_avals[0].dtype
    gram = [layer.in_gram_form(count, shared, samples) for layer in layers]
    tapped = [_aval(program.steps[layer.step].equation.outvars[0]) for layer in layers]

    def one(leaves, x):
        def forward(rest, taps):
            values = dict(zip(others, rest, strict=True))
            arguments = [values.get(i, leaf) for i, leaf in enumerate(leaves)]
            return program.evaluate([*arguments, x], layers, taps)

        # A network may compute in less than the leaves' precision; its kernel is then as good as that.
        taps = [jnp.zeros(h.shape, h.dtype) for h in tapped]
        _, pull, vectors = jax.vjp(forward, [leaves[i] for i in others], taps, has_aux=True)
        try:
            rest, cotangents = jax.vmap(pull)(jnp.eye(count, dtype=dtype))
        except NotImplementedError:  # grouped convolutions cannot be batched twice
            rest, cotangents = jax.lax.map(pull, jnp.eye(count, dtype=dtype))
        pairs = [
            (_with_bias(layer, v).astype(x.dtype), jax.vmap(layer.deltas)(d).astype(x.dtype))
            for layer, v, d in zip(layers, vectors, cotangents, strict=True)
        ]
        jacobians = [r.reshape(count, -1).astype(x.dtype) for r in rest]
        jacobians += [
            jnp.einsum("tn,ctm->cnm", a, d).reshape(count, -1)
            for (a, d), small in zip(pairs, gram, strict=True)
            if not small
        ]
        small = [pair for pair, small in zip(pairs, gram, strict=True) if small]
        empty = jnp.zeros((count, 0), x.dtype)
        return Factors([a for a, _ in small], [d for _, d in small], jnp.concatenate([empty, *jacobians], axis=1))

    activations = sum(math.prod(_aval(v).shape) for step in program.steps for v in step.equation.outvars)
    activations += sum(  # the windows of convolutions
        rows * n
        for layer in layers
        for rows, n, _ in [layer.shape]
        if rows * n > 2 * math.prod(_vector(program, layer))
    )
    together = max(1, TOGETHER // (x.dtype.itemsize * activations * (1 + count)))

    def of(leaves, x):
        return jax.vmap(partial(one, leaves))(x)

    in_layers = sum(layer.entries(count, small) for layer, small in zip(layers, gram, strict=True))
    in_others = count * sum(math.prod(leaves[i].shape) for i in others)
    kinds = (sum(gram), len(gram) - sum(gram), len(others))
    return Factorisation(of, together, count, in_layers + in_others, kinds)


def _vector(program: "Program", layer: Layer) -> tuple[int, ...]:
    return _aval(program.steps[layer.step].equation.invars[layer.vector]).shape


def product(one: Factors, two: Factors, /, *, shared: bool) -> Float[Array, "rows1 rows2"]:
    """The kernel between two blocks: all pairs of outputs, or the mean over outputs of the kernel of each."""

    def gram(a, b):  # (N1, C, p), (N2, C, p) → (N1, C1, N2, C2), or (N1, 1, N2, 1) for the mean over outputs
        (n1, outputs, p), n2 = a.shape, len(b)
        if shared:
            mean = a.reshape(n1, outputs * p) @ b.reshape(n2, outputs * p).T / outputs
            return mean[:, None, :, None]
        flat = a.reshape(n1 * outputs, p) @ b.reshape(n2 * outputs, p).T
        return flat.reshape(n1, outputs, n2, outputs)

    kernel = gram(one.jacobian, two.jacobian)
    for a1, d1, a2, d2 in zip(one.inputs, one.deltas, two.inputs, two.deltas, strict=True):
        if a1.shape[1] == a2.shape[1] == 1:
            kernel += (a1[:, 0] @ a2[:, 0].T)[:, None, :, None] * gram(d1[:, :, 0], d2[:, :, 0])
        else:
            kernel += _over_rows(a1, d1, a2, d2, shared)
    n1, c1, n2, c2 = kernel.shape
    return kernel.reshape(n1 * c1, n2 * c2)


def square(factors: Factors, /, *, shared: bool) -> Float[Array, "rows rows"]:
    """The kernel of a block with itself: of each pair of halves, what lies above the diagonal is computed."""
    samples = len(factors.jacobian)
    if samples <= UNDIVIDED:
        kernel = product(factors, factors, shared=shared)
        return (kernel + kernel.T) / 2  # symmetric to the last bit
    halves = slice(samples // 2), slice(samples // 2, samples)
    one, two = (jax.tree.map(lambda a, half=half: a[half], factors) for half in halves)
    beside = product(one, two, shared=shared)
    return jnp.block([[square(one, shared=shared), beside], [beside.T, square(two, shared=shared)]])


def diagonal(factors: Factors, /, *, shared: bool) -> Float[Array, " rows"]:
    """The diagonal of the kernel of a block with itself."""
    entries = jnp.sum(factors.jacobian**2, axis=2)
    for a, d in zip(factors.inputs, factors.deltas, strict=True):
        entries += jnp.einsum("nts,ncts->nc", a @ jnp.swapaxes(a, 1, 2), d @ jnp.swapaxes(d, 2, 3))
    return entries.mean(axis=1) if shared else entries.reshape(-1)


def _over_rows(a1, d1, a2, d2, shared):
    """Σ_{t,s} (a_t · a'_s) (δ_t · δ'_s) for all pairs, a few samples of the first block at a time."""
    (n2, rows, _), outputs = a2.shape, d2.shape[1]

    def one(ad):
        a, d = ad
        inputs = jnp.einsum("tn,Nsn->tNs", a, a2)
        if shared:
            deltas = jnp.einsum("ctm,Ncsm->tNs", d, d2) / outputs
            return jnp.sum(inputs * deltas, axis=(0, 2))[None, :, None]
        return jnp.einsum("tNs,ctNds->cNd", inputs, jnp.einsum("ctm,Ndsm->ctNds", d, d2))

    entries = rows**2 * n2 * (1 if shared else outputs**2)
    return jax.lax.map(one, (a1, d1), batch_size=min(len(a1), max(1, 2**22 // entries)))


def _with_bias(layer: Layer, vector) -> Array:
    rows = layer.scale * layer.inputs(vector)
    if layer.column is None:
        return rows
    return jnp.concatenate([rows, jnp.full((len(rows), 1), layer.column, rows.dtype)], axis=1)


class Step(NamedTuple):
    """One primitive of a program; inputs and outputs are numbers of values, or literals."""

    equation: JaxprEqn
    inputs: tuple
    outputs: tuple[int, ...]

    def __call__(self, values: dict[int, Any], used: set) -> dict[int, Any]:
        """The step's outputs that are used, by their numbers."""
        made = [i for i, number in enumerate(self.outputs) if number in used]
        variables = [v for v in self.equation.invars if not isinstance(v, Constant)]
        numbers = [n for n, v in zip(self.inputs, self.equation.invars, strict=True) if not isinstance(v, Constant)]
        given = dict(zip(variables, (n.val if isinstance(n, Constant) else values[n] for n in numbers), strict=True))
        outvars = [self.equation.outvars[i] for i in made]
        alone = _TEMPLATE.replace(constvars=[], invars=list(given), outvars=outvars, eqns=[self.equation])
        results = jaxpr_as_fun(ClosedJaxpr(alone, []))(*given.values())
        return dict(zip((self.outputs[i] for i in made), results, strict=True))


_TEMPLATE = jax.make_jaxpr(lambda: ())().jaxpr


@dataclass(frozen=True)
class Program:
    """A jaxpr with the jits in it unrolled, over numbered values."""

    arguments: tuple[int, ...]
    constants: dict[int, Any]
    steps: list[Step]
    outputs: tuple

    @cached_property
    def uses(self) -> dict[int, list[tuple[int, int]]]:
        """Where each value is used: (step, position), with step −1 for the program's outputs."""
        uses: dict[int, list[tuple[int, int]]] = {}
        everywhere = [(-1, self.outputs), *((s, step.inputs) for s, step in enumerate(self.steps))]
        for s, inputs in everywhere:
            for position, value in enumerate(inputs):
                if not isinstance(value, Constant):
                    uses.setdefault(value, []).append((s, position))
        return uses

    def evaluate(self, arguments: Sequence, layers: Sequence[Layer], taps: Sequence) -> tuple[Any, list]:
        """The program's output, with `taps` added to the layers' products; and the vectors that these act on."""
        values = dict(self.constants) | dict(zip(self.arguments, arguments, strict=True))
        used, tap_at = set(self.uses), {layer.step: tap for layer, tap in zip(layers, taps, strict=True)}
        for number, step in enumerate(self.steps):
            made = step(values, used)
            if number in tap_at:
                made = {name: value + tap_at[number] for name, value in made.items()}
            values |= made

        def read(value):
            return value.val if isinstance(value, Constant) else values[value]

        (output,) = map(read, self.outputs)
        return output, [read(self.steps[layer.step].inputs[layer.vector]) for layer in layers]

    def along(self, path: "Path", value: np.ndarray) -> np.ndarray:
        """What becomes of a value on its path, without compiling."""
        for step in path.steps:
            kind, facts, shape = (
                step.equation.primitive.name,
                step.equation.params,
                _aval(step.equation.outvars[0]).shape,
            )
            if kind == "transpose":
                value = value.transpose(facts["permutation"])
            elif kind == "broadcast_in_dim":
                sizes = np.ones(len(shape), int)
                sizes[list(facts["broadcast_dimensions"])] = value.shape
                value = np.broadcast_to(value.reshape(sizes), shape)
            else:
                value = (_constant(self, step) * value).reshape(shape)
        return value


def constants(closed: ClosedJaxpr, /) -> Iterator[np.ndarray]:
    """The arrays that a program holds, those of the programs inside it included."""
    for constant in closed.consts:
        key = jnp.issubdtype(getattr(constant, "dtype", np.float64), jax.dtypes.prng_key)
        yield np.asarray(jax.random.key_data(constant) if key else constant)
    for equation in closed.jaxpr.eqns:
        for inner in jax.tree.leaves(list(equation.params.values())):
            if isinstance(inner, ClosedJaxpr):
                yield from constants(inner)
            elif isinstance(inner, Jaxpr):
                yield from constants(ClosedJaxpr(inner, []))


def unroll(closed: ClosedJaxpr) -> Program:
    """The program of a jaxpr, without its jits."""
    steps: list[Step] = []
    constants: dict[int, Any] = {}
    numbers = itertools.count()

    def walk(jaxpr, consts, arguments):
        names: dict = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            names[variable] = next(numbers)
            constants[names[variable]] = value

        def read(variable):
            return variable if isinstance(variable, Constant) else names[variable]

        for equation in jaxpr.eqns:
            inputs = tuple(map(read, equation.invars))
            if equation.primitive.name in ("jit", "pjit"):
                inner = equation.params["jaxpr"]
                outputs = walk(inner.jaxpr, inner.consts, inputs)
            else:
                outputs = tuple(next(numbers) for _ in equation.outvars)
                steps.append(Step(equation, inputs, outputs))
            names.update(zip(equation.outvars, outputs, strict=True))
        return tuple(map(read, jaxpr.outvars))

    arguments = tuple(next(numbers) for _ in closed.jaxpr.invars)
    outputs = walk(closed.jaxpr, closed.consts, arguments)
    return Program(arguments, constants, steps, outputs)


def find_layers(program: Program, shapes: Sequence[tuple[int, ...]], /) -> list[Layer]:
    """The weights among the program's first arguments, of the given shapes, that are used in a single product."""
    layers: list[Layer] = []
    for index in range(len(shapes)):
        path = _follow(program, program.arguments[index], REARRANGE)
        place = _only_use(program, path.end)
        if place is None:
            continue
        number, position = place
        equation = program.steps[number].equation
        rows = FORMS.get(equation.primitive, lambda *_: None)(equation, position)
        by_the_other = any(layer.step == number for layer in layers)  # a product of two weights
        if rows is None or by_the_other:
            continue
        inputs, deltas, (t, n, m) = rows
        bias, column = _bias(program, number, deltas, (t, m), shapes)
        leaves, n = ((index,), n) if bias is None else ((index, bias), n + 1)
        layers.append(Layer(leaves, number, 1 - position, inputs, deltas, (t, n, m), path.factor, column))
    return layers


def _bias(program, number, deltas, shape, shapes) -> tuple[int | None, float | None]:
    """The leaf that is added to a product, and its factor relative to the product's."""
    product = _follow(program, program.steps[number].outputs[0], SCALE)
    place = _only_use(program, product.end)
    if place is None or program.steps[place[0]].equation.primitive is not jax.lax.add_p:
        return None, None
    added = program.steps[place[0]].inputs[1 - place[1]]
    for index, leaf in enumerate(shapes):
        path = _follow(program, program.arguments[index], REARRANGE | BROADCAST)
        if path.end == added and math.prod(leaf) == shape[1] and _only_use(program, added) is not None:
            # Where each entry of the bias ends up: it has to be the same column in every row.
            entries = np.arange(1.0, shape[1] + 1)
            arrived = program.along(path, entries.reshape(leaf))
            out = _aval(program.steps[number].equation.outvars[0]).shape
            if arrived.ndim == len(out) and all(a in (1, o) for a, o in zip(arrived.shape, out, strict=True)):
                seen = np.asarray(deltas(np.broadcast_to(arrived, out)))  # an addition may stretch axes of length 1
                if np.allclose(seen, np.broadcast_to(path.factor * entries, shape), rtol=1e-5, atol=0):
                    return index, path.factor / product.factor
    return None, None


SCALE = frozenset({"mul", "div", "neg", "convert_element_type", "copy"})
#: Primitives that keep the entries of their operand, up to one factor and their order.
REARRANGE = SCALE | {"transpose", "reshape", "squeeze"}
BROADCAST = frozenset({"broadcast_in_dim"})


class Path(NamedTuple):
    """A value's way through steps that only rearrange it and multiply it with a constant `factor`."""

    start: int
    end: int
    steps: list[Step]
    factor: float


def _follow(program: Program, start: int, through: frozenset[str]) -> Path:
    """The longest path of steps of the given kinds, each its predecessor's only use."""
    end, steps, factor = start, [], 1.0
    while (place := _only_use(program, end)) is not None:
        step = program.steps[place[0]]
        constant = _constant(program, step) if step.equation.primitive.name in through or _adds_axes(step) else None
        if not constant:  # no constant, or zero
            break
        steps.append(step)
        end, factor = step.outputs[0], factor * constant
    return Path(start, end, steps, factor)


def _adds_axes(step: Step) -> bool:
    """Whether a step only gives its operand further axes of length 1."""
    sizes = {math.prod(_aval(v).shape) for v in (*step.equation.invars[:1], *step.equation.outvars)}
    return step.equation.primitive.name in BROADCAST and len(sizes) == 1


def _only_use(program: Program, name: int) -> tuple[int, int] | None:
    """The step and the position of a value's only use."""
    places = program.uses.get(name, [])
    return places[0] if len(places) == 1 and places[0][0] >= 0 else None


def _constant(program: Program, step: Step) -> float | None:
    """What a step multiplies its operand with, if that is a constant."""
    kind = step.equation.primitive.name
    if kind == "neg":
        return -1.0
    if kind == "convert_element_type":
        return 1.0 if jnp.issubdtype(step.equation.params["new_dtype"], jnp.floating) else None
    if kind not in ("mul", "div"):
        return 1.0
    for position, value in enumerate(step.inputs):
        constant = value.val if isinstance(value, Constant) else program.constants.get(value)
        if constant is not None and np.size(constant) == 1 and not (kind == "div" and position == 0):
            number = float(np.asarray(constant).reshape(()))
            return number if kind == "mul" or not number else 1 / number
    return None


def _aval(variable) -> Any:
    """A variable's shape and dtype."""
    return variable.aval


def _dot_rows(equation: JaxprEqn, position: int):
    """The rows of a product of a weight with one sample's values."""
    contracted, batched = equation.params["dimension_numbers"]
    if batched[0]:
        return None
    vector, weight = (_aval(equation.invars[p]).shape for p in (1 - position, position))
    axes = contracted[1 - position]
    if not math.prod(weight):
        return None
    n = math.prod(vector[axis] for axis in axes)
    rows, m = math.prod(vector) // n, math.prod(weight) // n

    def inputs(v):
        return jnp.moveaxis(v, axes, range(-len(axes), 0)).reshape(rows, n)

    def deltas(d):
        return d.reshape(m, rows).T if position == 0 else d.reshape(rows, m)

    return inputs, deltas, (rows, n, m)


def _convolution_rows(equation: JaxprEqn, position: int):
    """The rows of a convolution: the windows of one image that the filter sees."""
    facts = equation.params
    image, kernel = (_aval(v).shape for v in equation.invars)
    spec = facts["dimension_numbers"]
    (batch, *channels_last), (features, channels, *window) = _spatial_first(spec.lhs_spec), spec.rhs_spec
    groups = facts["feature_group_count"] * facts["batch_group_count"]
    if position != 1 or groups != 1 or image[batch] != 1:
        return None
    lengths = [kernel[axis] for axis in window]
    out = _aval(equation.outvars[0]).shape
    out_batch, *out_order = _spatial_first(spec.out_spec)
    n, m, rows = kernel[channels] * math.prod(lengths), kernel[features], math.prod(out) // kernel[features]
    padding = [(*pair, spread - 1) for pair, spread in zip(facts["padding"], facts["lhs_dilation"], strict=True)]
    sizes = [out[axis] for axis in out_order[:-1]]

    def inputs(v):
        v = jnp.transpose(v, (batch, *channels_last))[0]
        v = jax.lax.pad(v, jnp.zeros((), v.dtype), [*padding, (0, 0, 0)])
        seen = []
        for offset in itertools.product(*map(range, lengths)):
            start = [o * spread for o, spread in zip(offset, facts["rhs_dilation"], strict=True)]
            stop = [
                s + (size - 1) * stride + 1
                for s, size, stride in zip(start, sizes, facts["window_strides"], strict=True)
            ]
            seen.append(jax.lax.slice(v, [*start, 0], [*stop, v.shape[-1]], [*facts["window_strides"], 1]))
        return jnp.concatenate(seen, axis=-1).reshape(rows, n)

    def deltas(d):
        return jnp.transpose(d, (out_batch, *out_order)).reshape(rows, m)

    return inputs, deltas, (rows, n, m)


def _spatial_first(spec: tuple[int, ...]) -> tuple[int, ...]:
    """(batch, spatial …, channels) of an array whose (batch, channels, spatial …) are the given axes."""
    batch, channels, *spatial = spec
    return batch, *spatial, channels


FORMS = {jax.lax.dot_general_p: _dot_rows, jax.lax.conv_general_dilated_p: _convolution_rows}
