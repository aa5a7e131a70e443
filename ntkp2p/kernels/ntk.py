r"""The empirical neural tangent kernel, Θ(x, x') = J(x) J(x')ᵀ with J = ∂f/∂θ at θ₀, summed over the leaves of θ.

`ntkp2p.kernels.layers` says what a block of samples gives to the kernel; here blocks are multiplied in pairs. Of a
symmetric kernel one half of the pairs is computed. Every device of the mesh holds a block, a group of blocks is one
array, and the other factor of the product travels around the ring of devices, so that one device, several, and those of
several processes run the same program; half a turn is enough where rows and columns are the same samples. Factors are
kept while memory lasts and computed again otherwise; J is never held for all samples.
"""

import hashlib
import logging
import math
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, PyTree

from ntkp2p.base import devices
from ntkp2p.base.devices import AXIS
from ntkp2p.base.errors import InputError
from ntkp2p.base.precision import in_float64
from ntkp2p.kernels import layers
from ntkp2p.kernels.layers import Apply
from ntkp2p.kernels.store import Store
from ntkp2p.models.networks import is_hashable

Outputs = Literal["exact", "shared"]
#: Samples of a block: enough for matrix products at full speed, few enough that half of them can be left out.
BLOCK = {"cpu": 256}
BLOCK_OF_ACCELERATORS = 2048
#: The C library maps larger pieces of memory again in every call, page by page: half of the time, as measured.
KEPT_BY_MALLOC = 2**25
#: Bytes of a block up to which the product of two blocks is compiled only when there are two.
SMALL = 2**22

log = logging.getLogger(__name__)


def empirical_ntk(
    apply: Apply,
    params: PyTree,
    x1: np.ndarray,
    x2: np.ndarray | None = None,
    /,
    *,
    outputs: str = "exact",
    precision: str = "float64",
    memory: int | None = None,
    mesh: Mesh | None = None,
    cache: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "rows1 rows2"]:
    """The tangent kernel between two sets of inputs.

    Parameters
    ----------
    apply
        `apply(params, x) -> (N, C)`.
    params
        θ₀, any pytree.
    x1, x2
        Inputs, shapes (N1, ...) and (N2, ...); x2 defaults to x1.
    outputs, precision, memory, mesh, cache, progress
        As for `TangentKernel`.

    Returns
    -------
    kernel
        Shape (N1·C, N2·C), row n·C + c for output c of sample n, or (N1, N2) where outputs are "shared".

    Raises
    ------
    ValueError
        As `TangentKernel`; and if the kernel does not fit into the memory.
    """
    kernel = TangentKernel(
        apply,
        params,
        x1,
        outputs=outputs,
        precision=precision,
        memory=memory,
        mesh=mesh,
        cache=cache,
        progress=progress,
    )
    return kernel.matrix() if x2 is None else kernel.against(x2)


def jacobian(apply: Apply, params: PyTree, x: Array, /) -> Float[Array, "rows P"]:
    """∂f(x)/∂θ as a matrix, one row for each sample and output; for networks of few parameters."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    leaves = jax.tree.leaves(jax.vmap(jax.jacrev(lambda p, x: apply(p, x[None])[0]), in_axes=(None, 0))(params, x))
    rows = [leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves]
    return jnp.concatenate(rows, axis=2).reshape(-1, size)


def must_fit(shape: tuple[int, int], itemsize: int, free: int, /) -> None:
    """Refuse a kernel that takes more than `free` bytes."""
    if (needed := math.prod(shape) * itemsize) > free:
        raise InputError(
            f"a kernel of {shape[0]} × {shape[1]} takes {_bytes(needed)} and {_bytes(max(free, 0))} may be used: "
            "give a tolerance, which needs some columns only (kernel_rtol = 1e-6), or take fewer samples "
            "or outputs"
        )


class TangentKernel:
    """The tangent kernel of a network on a set of inputs, as a whole or by columns.

    Parameters
    ----------
    apply
        `apply(params, x) -> (N, C)`, a pure function: as by `jax.jit`, what it has been compiled to is kept.
    params
        θ₀, any pytree.
    x
        Inputs, shape (N, ...).
    outputs
        "exact": all pairs of outputs, N·C rows. "shared": the mean over outputs of the kernel of each, N rows.
    precision
        The floats in which the network and the kernel are computed and returned: "float64" or "float32".
    memory
        Bytes that may be used in all, the kernel included; by default half of what is free.
    mesh
        The devices that share the work; by default all.
    cache
        A folder that keeps finished blocks, so that a run that was killed goes on where it was.
    progress
        Called with (products of blocks done, in all); starting again for each batch of columns.

    Raises
    ------
    ValueError
        If `outputs` or `precision` is unknown, parameters are not real floating-point arrays, or there is no sample; if
        not even one sample's factors fit into the memory; if several processes were given different things.
    """

    @in_float64
    def __init__(
        self,
        apply: Apply,
        params: PyTree,
        x: np.ndarray,
        /,
        *,
        outputs: str = "exact",
        precision: str = "float64",
        memory: int | None = None,
        mesh: Mesh | None = None,
        cache: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        if outputs not in ("exact", "shared"):
            raise InputError(f'outputs must be "exact" or "shared", found {outputs!r}')
        if precision not in ("float64", "float32"):
            raise InputError(f'precision must be "float64" or "float32", found {precision!r}')
        if not len(x):
            raise InputError("a tangent kernel needs at least one sample, found none")
        kinds = {jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}
        if not kinds or not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
            raise InputError("params must be real floating-point arrays: keep counters and statistics out of them")
        self._mesh = devices.all_devices() if mesh is None else mesh
        self._dtype, self._shared = np.dtype(precision), outputs == "shared"
        self._leaves = [np.asarray(leaf, precision) for leaf in jax.tree.leaves(params)]
        self._memory = devices.least(devices.free_memory() // 2 if memory is None else memory, self._mesh)
        self._local = -devices.least(-len(self._mesh.local_devices), self._mesh)  # as every process takes it
        self._device_memory = self._memory_of_accelerators()
        self._cache, self._progress = cache, progress
        self._x = np.asarray(x, precision)
        self._programs = self._fitting(apply, jax.tree.structure(params))
        self._rows = _Side(self._x, self._programs.size, self._mesh)
        self._placed = [devices.place(leaf, self._mesh) for leaf in self._leaves]
        self._held: dict[int, Any] = {}
        self._room = self._room_beside(0)
        self._travel: tuple[int, int, Any] | None = None

    @cached_property
    def _identity(self) -> str:
        """What the cache knows this kernel by: parameters, data, network, code, precision and blocks."""
        # The program with its backward pass, so that rules for derivatives are in it as well.
        leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in self._leaves]
        closed = jax.make_jaxpr(self._programs.plan.of)(leaves, self._x[:1])
        program = re.sub(r"0x[0-9a-f]+", "", str(closed))  # addresses change from run to run
        settings = f"{self._dtype} {self._shared} {self._programs.size}"
        return _digest(_code(), program, settings, *layers.constants(closed), *self._leaves, self._x)

    def _store(self, columns: "_Side") -> Store | None:
        if self._cache is None:
            return None
        other = () if columns is self._rows else (columns.x,)
        return Store(self._cache, f"ntk-{_digest(self._identity, *other)}")

    @property
    def rows(self) -> int:
        """The rows of the kernel: N·C, or N where outputs are shared."""
        return len(self._x) * self._per_sample

    @property
    def batch(self) -> int:
        """How many samples' columns are best asked for together."""
        return self._programs.size * self._mesh.size

    @property
    def peak(self) -> int:
        """Bytes that `matrix` takes at most on this machine, the kernel included."""
        result = self.rows**2 * self._dtype.itemsize
        return result + self._work(result)

    @in_float64
    def matrix(self) -> Float[np.ndarray, "rows rows"]:
        """The whole kernel, symmetric to the last bit."""
        return self._between(self._rows)

    @in_float64
    def against(self, x: np.ndarray, /) -> Float[np.ndarray, "rows other"]:
        """The kernel between these inputs and others `x`, shape (N·C, M·C)."""
        other = np.asarray(x, self._dtype)
        if other.shape[1:] != self._x.shape[1:]:
            raise InputError(
                f"each input has the shape {self._x.shape[1:]} here, found {other.shape[1:]}: give inputs of one kind"
            )
        return self._between(_Side(other, self._programs.size, self._mesh))

    def columns(self, samples: np.ndarray, /) -> Float[np.ndarray, "rows chosen"]:
        """The columns of some `samples`, by number, with all their outputs: of `matrix`, which is never formed."""
        return self.against(self._x[samples])

    @in_float64
    def diagonal(self) -> Float[np.ndarray, " rows"]:
        """The diagonal of the kernel."""
        groups = [np.asarray(self._programs.diagonal(self._factors(g))) for g in range(self._rows.groups)]
        return np.concatenate(groups).reshape(-1)[: self.rows]

    def release(self) -> None:
        """Drop the stored factors to free their memory; they are computed again when needed."""
        self._held.clear()
        self._travel = None

    @property
    def _per_sample(self) -> int:
        return 1 if self._shared else self._programs.plan.outputs

    @property
    def working(self) -> int:
        """Bytes that `columns` and `diagonal` take at most on this machine, beside their result."""
        return self._work(self.rows * self.batch * self._per_sample * self._dtype.itemsize)

    def _work(self, result: int) -> int:
        """Bytes that the work on a result of that many takes on this machine."""
        return self._least_work(min(self._room_beside(result), self._rows.groups))

    def _least_work(self, groups: int = 1) -> int:
        """Bytes that the work takes on this machine with the factors of this many groups in memory."""
        if self._device_memory is not None:
            return 0
        return self._local * ((groups + 1) * self._programs.bytes + self._programs.temporary)

    def _room_beside(self, result: int) -> int:
        """How many groups' factors may be kept beside the one that travels and a result of that many bytes."""
        free = self._budget(result) - self._programs.temporary
        return max(1, free // self._programs.bytes - 1)

    def _memory_of_accelerators(self) -> int | None:
        """Bytes that each device has of its own, if it has."""
        device = self._mesh.local_devices[0]
        return None if device.platform == "cpu" else devices.least(devices.free_memory(device) // 2, self._mesh)

    def _budget(self, result: int) -> int:
        """Bytes that a device has for the work when the host has to hold that much."""
        if self._device_memory is not None:
            return self._device_memory
        return (self._memory - result) // self._local

    def _fitting(self, apply: Apply, structure) -> "_Programs":
        """The programs for the largest blocks that fit."""
        samples, width = len(self._x), self._mesh.size
        size = BLOCK.get(self._mesh.devices.flat[0].platform, BLOCK_OF_ACCELERATORS)
        shapes = tuple(leaf.shape for leaf in self._leaves)
        # A network that cannot be hashed is compiled again each time.
        compile_for = _programs if is_hashable(apply) else _programs.__wrapped__
        while True:
            blocks = width * -(-samples // (width * size))
            size = -(-samples // blocks)
            key = (structure, shapes, self._x.shape[1:], samples, self._shared, self._dtype, size, self._mesh)
            programs = compile_for(apply, *key)
            rows = samples * (1 if self._shared else programs.plan.outputs)
            # Of what is allowed, the kernel may take nine tenths.
            free = self._budget(min(rows**2 * self._dtype.itemsize, 9 * self._memory // 10))
            need = 2 * programs.bytes + programs.temporary
            if need <= free:
                return programs
            if size == 1:
                raise InputError(
                    f"a tangent kernel needs {_bytes(need)} for one sample and {_bytes(max(free, 0))} may be used: "
                    "take a smaller network, or give it more with memory="
                )
            size = max(1, size // 2)

    def _between(self, columns: "_Side") -> np.ndarray:
        rows, per = self._rows, self._per_sample
        shape = rows.samples * per, columns.samples * per
        must_fit(shape, self._dtype.itemsize, self._memory - self._least_work())
        self._room, self._travel = self._room_beside(math.prod(shape) * self._dtype.itemsize), None
        while len(self._held) > self._room:
            self._held.popitem()
        if jax.process_count() > 1:
            self._must_agree(columns)
        if columns is rows:
            log.info("a tangent kernel of %d rows takes at most %s of memory", self.rows, _bytes(self.peak))
        blocks = _Blocks(np.empty(shape, self._dtype), self._programs.size * per, columns is rows)
        store = self._store(columns)
        pairs = list(self._pairs(columns))
        done = blocks.restore(store, [place for pair in pairs for place in pair.places])
        pairs = [pair for pair in pairs if not done.issuperset(pair.places)]
        # One product ahead: the devices multiply while the host puts the last one into place.
        ahead = deque(self._product(columns, pair) for pair in pairs[:1])
        for number, pair in enumerate(pairs):
            ahead.extend(self._product(columns, following) for following in pairs[number + 1 : number + 2])
            blocks.write(np.asarray(ahead.popleft()), pair.places, store)
            if self._progress is not None:
                self._progress(number + 1, len(pairs))
        self._travel = None
        return blocks.kernel

    def _must_agree(self, columns: "_Side") -> None:
        """Refuse to begin where the processes would compute different things, or not the same steps."""
        programs, arrays = self._programs, [*self._leaves, self._x, columns.x]
        steps = [
            [a.shape for a in arrays],
            programs.size,
            programs.parts,
            self._room,
            self._shared,
            self._cache is None,
        ]
        # The last digits may differ from one kind of machine to another.
        weighed = sum(float(a.reshape(-1) @ np.cos(np.arange(a.size))) for a in arrays)
        same = devices.agree(zlib.crc32(repr(steps).encode()), self._mesh)
        if not (devices.agree(weighed, self._mesh, rtol=1e-6) and same):
            raise InputError("the processes were given different experiments or memory: give every process the same")

    def _product(self, columns: "_Side", pair: "_Pair") -> Array:
        if columns is self._rows and pair.row == pair.column and pair.turn == 0:
            return self._programs.square(self._factors(pair.row))
        # The one that travels comes first: it may be the one that is kept.
        travelling = self._travelling(columns, pair)
        return self._programs.product(self._factors(pair.row), travelling)

    def _pairs(self, columns: "_Side") -> Iterator["_Pair"]:
        rows, width, symmetric = self._rows, self._mesh.size, columns is self._rows
        for first in range(0, rows.groups, self._room):
            panel = range(first, min(first + self._room, rows.groups))
            for h in range(first if symmetric else 0, columns.groups):
                for turn in range(width):
                    places = [(p, h * width + (p + turn) % width) for p in range(width)]
                    for g in panel:
                        if not symmetric or g < h or (g == h and turn <= width // 2):
                            here = [(g * width + p, column) for p, column in places]
                            yield _Pair(g, h, turn, symmetric and h in panel, here)

    def _factors(self, group: int):
        """A group's factors, kept until their memory is needed."""
        if group not in self._held:
            while len(self._held) >= self._room:
                self._held.pop(next(iter(self._held)))
            self._held[group] = self._computed(self._rows, group)
        return self._held[group]

    def _computed(self, side: "_Side", group: int):
        programs = self._programs
        parts = [programs.factors(self._placed, x) for x in side.group(group, programs.parts)]
        return parts[0] if len(parts) == 1 else programs.join(parts)

    def _travelling(self, columns: "_Side", pair: "_Pair"):
        """The factors of a group of columns, turned around the ring of devices."""
        if self._travel is None or self._travel[0] != pair.column or self._travel[1] > pair.turn:
            self._travel = None
            kept = pair.keep or (columns is self._rows and pair.column in self._held)
            group = self._factors(pair.column) if kept else self._computed(columns, pair.column)
            self._travel = pair.column, 0, group
        column, turn, group = self._travel
        for _ in range(turn, pair.turn):
            group = self._programs.turn(group)
        self._travel = column, pair.turn, group
        return group


class _Pair(NamedTuple):
    """What is multiplied: a group of rows with one of columns that has turned so far; and the blocks that it makes."""

    row: int
    column: int
    turn: int
    keep: bool
    places: list[tuple[int, int]]


class _Side:
    """Samples in groups of one block a device, the last ones repeated to fill the last group."""

    def __init__(self, x: np.ndarray, size: int, mesh: Mesh):
        self.samples, self.x, self._size, self._mesh = len(x), x, size, mesh
        self.groups = -(-len(x) // (size * mesh.size))

    def group(self, g: int, parts: int) -> list[Array]:
        """The inputs of a group in parts, each of shape (devices, size / parts, ...)."""
        width = self._mesh.size
        index = np.minimum(np.arange(g * width * self._size, (g + 1) * width * self._size), self.samples - 1)
        index = index.reshape(width, parts, self._size // parts)
        return [devices.place(self.x[index[:, part]], self._mesh, AXIS) for part in range(parts)]


class _Blocks:
    """A kernel that fills up block by block; of a symmetric one, each block fills two places."""

    def __init__(self, kernel: np.ndarray, size: int, symmetric: bool):
        self.kernel, self._size, self._symmetric = kernel, size, symmetric

    def restore(self, store: Store | None, places: list[tuple[int, int]]) -> set[tuple[int, int]]:
        """Take over the blocks that are in the store, in every process's; returns their places."""
        if store is None:
            return set()
        blocks = (store.get(f"{i}-{j}") for i, j in places)
        there = [block is not None and self._put(place, block) for place, block in zip(places, blocks, strict=True)]
        if jax.process_count() > 1:
            there = multihost_utils.process_allgather(np.array(there)).all(axis=0).tolist()
        return {place for place, here in zip(places, there, strict=True) if here}

    def write(self, blocks: np.ndarray, places: list[tuple[int, int]], store: Store | None) -> None:
        """Put the blocks of one product, shape (devices, size, size), into place."""
        for block, place in zip(blocks, places, strict=True):
            self._put(place, block)
            if store is not None:
                store.put("{}-{}".format(*place), block)

    def _put(self, place: tuple[int, int], block: np.ndarray) -> bool:
        (i, j), size = place, self._size
        if block.shape != (size, size):
            return False
        rows, columns = slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size)
        into = self.kernel[rows, columns]  # the last blocks are cut, those beyond are empty
        into[:] = block[: into.shape[0], : into.shape[1]]
        if self._symmetric and i != j:
            self.kernel[columns, rows] = into.T
        return True


@dataclass(frozen=True)
class _Programs:
    """The compiled programs for blocks of one size, and what they take on each device.

    `factors(leaves, x)` for x of shape (devices, size / parts, ...), `join(list of factors)`, `product(rows, columns)`
    of shape (devices, size, size) everywhere, `square(rows)` of rows with themselves, `turn(columns)` by one device
    around the ring, `diagonal(factors)`.
    """

    size: int
    parts: int
    plan: layers.Factorisation
    factors: Callable
    join: Callable
    product: Callable
    square: Callable
    turn: Callable
    diagonal: Callable
    bytes: int
    temporary: int


@lru_cache(maxsize=8)
def _programs(apply, structure, shapes, sample, samples, shared, dtype, size, mesh) -> _Programs:
    # Accelerators would multiply float32 in fewer bits.
    with jax.default_matmul_precision("highest"):
        leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
        params = jax.tree.unflatten(structure, leaves)
        plan = layers.factorise(apply, params, jax.ShapeDtypeStruct(sample, dtype), samples=samples, shared=shared)
        divided, everywhere = (jax.sharding.NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((AXIS,), ()))

        def on_each(function):  # for arguments that are divided, without their first axis
            def local(*arguments):
                return jax.tree.map(lambda r: r[None], function(*jax.tree.map(lambda a: a[0], arguments)))

            return jax.shard_map(
                local, mesh=mesh, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(AXIS), check_vma=False
            )

        def placed(shapes, sharding):
            return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes)

        def factors(leaves, x):
            def local(leaves, x):
                return jax.tree.map(lambda r: r[None], plan.of(leaves, x[0]))

            specs = {"in_specs": (PartitionSpec(), PartitionSpec(AXIS)), "out_specs": PartitionSpec(AXIS)}
            return jax.shard_map(local, mesh=mesh, **specs, check_vma=False)(leaves, x)

        def turn(f):
            ring = [((p + 1) % mesh.size, p) for p in range(mesh.size)]
            return on_each(lambda f: jax.tree.map(lambda a: jax.lax.ppermute(a, AXIS, ring), f))(f)

        def factors_of(each):  # samples of each device
            x = jax.ShapeDtypeStruct((mesh.size, each, *sample), dtype, sharding=divided)
            return x, jax.jit(factors, out_shardings=divided).lower(leaves, x).compile()

        # Parts are evaluated one by one from here, for within a loop of XLA's a convolution has one core.
        leaves, each = placed(leaves, everywhere), size
        while each > plan.together:
            each = -(-each // 2)
        x, made = factors_of(each)
        while each > 1 and _temporary(made) > KEPT_BY_MALLOC and mesh.devices.flat[0].platform == "cpu":
            each = -(-each // 2)
            x, made = factors_of(each)
        parts = -(-size // each)
        size = parts * each
        part = placed(jax.eval_shape(factors, leaves, x), divided)
        join = jax.jit(lambda parts: jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *parts), out_shardings=divided)
        f = placed(jax.eval_shape(join, [part] * parts), divided)
        product = jax.jit(on_each(partial(layers.product, shared=shared)), out_shardings=everywhere)
        square = jax.jit(on_each(partial(layers.square, shared=shared)), out_shardings=everywhere).lower(f).compile()
        diagonal = jax.jit(on_each(partial(layers.diagonal, shared=shared)), out_shardings=everywhere)
        held, rows = plan.entries * size * dtype.itemsize, size * (1 if shared else plan.outputs)
        # Parameters, two products at a time, the parts of a block beside the block, and a traveller beside the next.
        kept = dtype.itemsize * (sum(map(math.prod, shapes)) + 2 * mesh.size * rows**2)
        kept += held * ((parts > 1) + (mesh.size > 1))
        needs = [_temporary(made), _temporary(square)]
        # A small kernel of one block has no products of two: compiled, if at all, for new inputs.
        if samples > size * mesh.size or held > SMALL:
            product = product.lower(f, f).compile()
            needs.append(_temporary(product))
        return _Programs(
            size=size,
            parts=parts,
            plan=plan,
            factors=made,
            join=join,
            product=product,
            square=square,
            turn=jax.jit(turn, out_shardings=divided),
            diagonal=diagonal,
            bytes=held,
            temporary=max(needs) + kept,
        )


def _temporary(program) -> int:
    """Bytes that a compiled program takes beside its arguments and results."""
    return getattr(program.memory_analysis(), "temp_size_in_bytes", 0)


def _digest(*parts: Any) -> str:
    """A name for arrays and texts that differ where any of them does."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        array = np.ascontiguousarray(np.frombuffer(part.encode(), np.uint8) if isinstance(part, str) else part)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _code() -> str:
    """The code that computes kernels."""
    return "".join(Path(file).read_text(encoding="utf-8") for file in (__file__, layers.__file__))


def _bytes(count: int | float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
