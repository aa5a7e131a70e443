"""A data set: arrays of inputs and targets, checked."""

from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from ntkp2p.base.checks import LARGEST_VALUE, Count
from ntkp2p.base.errors import InputError
from ntkp2p.base.reports import html_table

if TYPE_CHECKING:
    import ntkp2p.data.partition


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Dataset:
    """Training and test samples.

    Parameters
    ----------
    name
        What to call it in reports and plots.
    inputs, targets
        Shapes (N, ...) and (N, C), N ≥ 1; kept as float64.
    labels
        Shape (N,): each sample's index into `classes`; None for a regression.
    test_inputs, test_targets, test_labels
        The same for the test samples; none by default.
    classes
        The classes' original labels, in the order of the indices; None for a regression.

    Raises
    ------
    ValueError
        For shapes that do not match, values that are not finite, or no samples.

    Examples
    --------
    >>> import numpy as np
    >>> import ntkp2p as p2p
    >>> p2p.data.Dataset(name="line", inputs=np.ones((4, 3)), targets=np.ones((4, 1)))
    Dataset('line': 4 training + 0 test samples, inputs (3,), 1 output, regression)
    """

    name: str
    # Plain arrays here: a wrong shape is refused below, in words.
    inputs: np.ndarray
    targets: np.ndarray
    labels: np.ndarray | None = None
    test_inputs: np.ndarray = field(default_factory=lambda: np.empty(0))
    test_targets: np.ndarray = field(default_factory=lambda: np.empty(0))
    test_labels: np.ndarray | None = None
    classes: tuple[int, ...] | None = None

    def __post_init__(self):
        self._set("inputs", as_numbers(self.inputs, "inputs"))
        self._set("targets", as_numbers(self.targets, "targets"))
        if self.inputs.ndim < 2 or self.inputs.size == 0:
            raise InputError(
                f"inputs have shape {self.inputs.shape}: at least one sample and one feature are "
                "needed, as (samples, features) or (samples, height, width, channels)"
            )
        if self.targets.ndim != 2 or self.targets.shape[1] == 0:
            raise InputError(
                f"targets have shape {self.targets.shape}: (samples, outputs) is needed; "
                "targets[:, None] makes one output"
            )
        self._set("test_inputs", _like(self.inputs, self.test_inputs, "inputs"))
        self._set("test_targets", _like(self.targets, self.test_targets, "targets"))
        self._admit_labels()
        for half in ("", "test_"):
            self._check_half(half)

    def _set(self, name: str, value: object):
        object.__setattr__(self, name, value)  # the dataclass is frozen otherwise

    def _admit_labels(self):
        given = [x is not None for x in (self.labels, self.classes)]
        if given[0] != given[1] or (self.test_labels is not None and not given[0]):
            raise InputError("labels and classes go together: give both, or neither (regression)")
        if self.labels is None or self.classes is None:
            return
        if self.test_labels is None:
            self._set("test_labels", np.empty(0, np.int64))
        self._set("classes", tuple(int(c) for c in self.classes))
        for name in ("labels", "test_labels"):
            labels = np.asarray(getattr(self, name))
            indices = np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1
            if not indices or not np.isin(labels, range(len(self.classes))).all():
                raise InputError(
                    f"{name} must be indices into the {len(self.classes)} classes, "
                    f"whole numbers from 0 to {len(self.classes) - 1} in one dimension"
                )
            self._set(name, labels.astype(np.int64))

    def _check_half(self, half: str):
        arrays = {half + name: getattr(self, half + name) for name in ("inputs", "targets")}
        if self.labels is not None:
            arrays[half + "labels"] = getattr(self, half + "labels")
        if len({len(array) for array in arrays.values()}) > 1:
            found = ", ".join(f"{len(array)} {name}" for name, array in arrays.items())
            raise InputError(f"the numbers of samples differ ({found}): give one of each a sample")
        for name, array in arrays.items():
            check_finite(array, name)

    @property
    def samples(self) -> int:
        """N, the number of training samples."""
        return len(self.inputs)

    @property
    def outputs(self) -> int:
        """C, the number of outputs of a model of these data."""
        return self.targets.shape[1]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.inputs.shape[1:]

    def split(
        self,
        agents: Count,
        *,
        by: str = "iid",
        seed: Count = 0,
        alpha: int | float | None = None,
        skew: int | float | None = None,
    ) -> "ntkp2p.data.partition.AgentData":
        """Deal the training samples to agents, as `ntkp2p.data.split` does.

        Parameters
        ----------
        agents, by, seed, alpha, skew
            As for `ntkp2p.data.split`.

        Returns
        -------
        AgentData

        Raises
        ------
        ValueError
            As `ntkp2p.data.split`.

        Examples
        --------
        >>> import ntkp2p as p2p
        >>> p2p.data.load("regression", samples=30, test_samples=0).split(agents=3, by="label").sizes
        array([10, 10, 10])
        """
        from ntkp2p.data.partition import split

        return split(self, agents, by=by, seed=seed, alpha=alpha, skew=skew)

    def __repr__(self) -> str:
        task = "regression" if self.classes is None else f"classes {self.classes}"
        return (
            f"Dataset({self.name!r}: {self.samples} training + {len(self.test_inputs)} test "
            f"samples, inputs {self.input_shape}, {plural(self.outputs, 'output')}, {task})"
        )

    def _repr_html_(self) -> str:
        title = f"<b>{escape(self.name)}</b>: inputs {self.input_shape}, " + plural(self.outputs, "output")
        if self.labels is None or self.test_labels is None or self.classes is None:
            return f"{title}, {self.samples} training + {len(self.test_inputs)} test samples"
        kinds = len(self.classes)
        rows = [
            ["training", *np.bincount(self.labels, minlength=kinds), self.samples],
            ["test", *np.bincount(self.test_labels, minlength=kinds), len(self.test_labels)],
        ]
        return title + html_table(["class", *self.classes, "all"], rows)


def as_numbers(values: Any, what: str) -> Float64[np.ndarray, "..."]:
    if isinstance(values, np.ma.MaskedArray):
        raise InputError(f"{what} are a masked array: fill its masked entries or remove those samples")
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what} must be an array of numbers, not of {array.dtype}")
    return array.astype(np.float64)


def _like(training: np.ndarray, values: Any, what: str) -> Float64[np.ndarray, "..."]:
    """Test values: of the training values' shape, but for the number of samples."""
    array = as_numbers(values, f"test_{what}")
    if array.size == 0:
        return np.empty((0, *training.shape[1:]))
    if array.shape[1:] != training.shape[1:]:
        raise InputError(
            f"test_{what} have shape {array.shape} but {what} have {training.shape}: all but the first size must agree"
        )
    return array


def check_finite(values: np.ndarray, what: str):
    if np.any(np.isfinite(values) & (abs(values) > LARGEST_VALUE)):
        raise InputError(f"{what} have values beyond ±{LARGEST_VALUE:g}, whose losses overflow: scale them")
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if bad.size:
        kind = "NaN" if np.isnan(values[bad[0]]).any() else "infinity"
        raise InputError(
            f"{what} contain {kind} at sample {bad[0]} (first of {bad.size}): remove or impute those samples"
        )


# What leaves


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
