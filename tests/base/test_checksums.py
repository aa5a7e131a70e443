"""Any single changed byte of a stored array or result is noticed, before a library parses the file."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from ntkp2p import InputError
from ntkp2p.base.checksums import SIZE, is_intact, seal
from ntkp2p.kernels.store import Store
from ntkp2p.runs.trajectory import load_netcdf, save_netcdf


def changes(path, count, seed):
    """Change random bytes of a file one at a time, each to another value; the file is whole again after each."""
    rng = np.random.default_rng(seed)
    with path.open("rb+", buffering=0) as file:
        size = path.stat().st_size
        for place, shift in zip(rng.integers(size, size=count), rng.integers(1, 256, size=count), strict=True):
            file.seek(place)
            (old,) = file.read(1)
            file.seek(place)
            file.write(bytes([(old + int(shift)) % 256]))
            yield int(place)
            file.seek(place)
            file.write(bytes([old]))


def test_a_file_matches_its_checksum_until_it_changes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"contents")
    assert is_intact(path) is None
    seal(path)
    assert path.stat().st_size == 8 + SIZE
    assert is_intact(path) is True
    path.write_bytes(b"C" + path.read_bytes()[1:])
    assert is_intact(path) is False
    path.write_bytes(b"")
    assert is_intact(path) is None


@pytest.mark.parametrize("count", [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_every_changed_byte_of_a_block_is_noticed(tmp_path, count, caplog):
    store, array = Store(tmp_path, "kernel"), np.random.default_rng(0).normal(size=(6, 5))
    store.put("0-0", array)
    path = tmp_path / "kernel" / "0-0.npz"
    np.testing.assert_array_equal(store.get("0-0"), array)
    assert not caplog.records
    for place in changes(path, count, seed=1):
        assert store.get("0-0") is None, place
    assert f"{path} is damaged: this block is computed again" in caplog.text
    np.testing.assert_array_equal(store.get("0-0"), array)
    path.write_bytes(path.read_bytes()[:-1])
    assert store.get("0-0") is None
    assert store.get("missing") is None


@pytest.fixture
def saved(tmp_path):
    values = {"loss": ("round", np.linspace(1, 2, 7)), "name": ("round", list("abcdefg")), "rate": ((), 0.5)}
    dataset = xr.Dataset(values, coords={"round": np.arange(7)}, attrs={"source": "rounds"})
    return dataset, save_netcdf(dataset, tmp_path / "run.nc")


def test_results_are_stored_with_checksums_of_arrays_and_file(saved):
    dataset, path = saved
    xr.testing.assert_identical(load_netcdf(path), dataset)
    with xr.open_dataset(path, engine="h5netcdf") as again:  # any reader of netCDF reads it
        xr.testing.assert_identical(again.load(), dataset)
        assert again["loss"].encoding["fletcher32"]


def test_a_result_without_a_checksum_is_refused(saved, tmp_path):
    dataset, path = saved
    dataset.to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    for wrong in (b"", b"no netCDF", path.read_bytes()[:-1], (tmp_path / "other.nc").read_bytes()):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=r"has no checksum, .* compute and save it again"):
            load_netcdf(path)


def test_every_changed_byte_of_a_result_is_noticed(saved):
    """In a process of its own, which HDF5's library would end if it parsed some of these files."""
    _, path = saved
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(path.parent)!r})
from changes import changes
from ntkp2p import InputError
from ntkp2p.runs.trajectory import load_netcdf
path = Path({str(path)!r})
for place in changes(path, 2000, seed=2):
    try:
        load_netcdf(path)
    except InputError:
        continue
    raise SystemExit(f"byte {{place}} was not noticed")
load_netcdf(path)
"""
    (path.parent / "changes.py").write_text(f"import numpy as np\n{inspect.getsource(changes)}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
