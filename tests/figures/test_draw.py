from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib import image

from ntkp2p.figures import capacity, draw, networks, study


@pytest.mark.parametrize("name", ["figure1", pytest.param("ten_classes", marks=pytest.mark.slow)])
def test_a_figure_is_drawn_and_its_runs_are_written(name, tmp_path):
    seen = []
    table = draw.draw(tmp_path, quick=True, only=name, progress=lambda *step: seen.append(step))
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.png", f"{name}.nc"}
    picture = image.imread(tmp_path / f"{name}.png")
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.02  # something is drawn on it
    run = xr.load_dataset(tmp_path / f"{name}.nc", engine="h5netcdf")
    assert list(run["source"].values) == ["trained", "rounds", "flow"]
    worst = np.abs(run["local_loss"][0] - run["local_loss"][1]).max() / run["local_loss"][1, 0].mean()
    assert table["linearisation"].iloc[0] == pytest.approx(float(worst), rel=1e-6, abs=1e-12)
    assert seen[-2][1] == seen[-2][2] == run["round"][-1]
    assert seen[-1] == ("figures", 1, 1)


@pytest.mark.slow
def test_the_edge_of_stability_has_trained_runs_on_both_sides():
    """What training did is marked: it fell at 0.9 of the predicted limit, and grew at 1.1 of it, in every row."""
    with plt.style.context(draw.STYLE):
        figure, results = networks.stability(study.Study(study.QUICK, lambda *step: None))
    assert set(results) == {"_delay", "_smallest_eigenvalue"}
    for ax in figure.axes[:2]:
        falls, grows = (np.asarray(points.get_offsets()) for points in ax.collections[-2:])
        np.testing.assert_allclose(falls[:, 1], grows[:, 1])
        np.testing.assert_allclose(grows[:, 0] / falls[:, 0], 1.1 / 0.9)
        assert len(falls) > 2
    plt.close(figure)


@pytest.mark.slow
def test_the_study_of_staleness_finds_its_laws(tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "QUICK", replace(study.QUICK, regression_every=4, boundary_delays=1))
    table = draw.draw(tmp_path, quick=True, only="staleness")
    names = {name for name in draw.FIGURES if name.startswith("staleness")}
    assert {p.stem for p in tmp_path.glob("*.png")} == names
    assert all(list(tmp_path.glob(f"{name}*.nc")) for name in names)
    assert np.isfinite(table.to_numpy(float)).any(axis=1).all()
    assert table["linearisation"].filter(like="linear regression").filter(regex="^linear").max() < 1e-10
    agreed = table.loc["runs as the mean-square boundary says"]
    assert agreed["right"] == agreed["decided"] == agreed["runs"] == 2
    # What holds the staleness at 1 is exactly λ = H_{n−1}. Over U updates a mean of delays D, which the same messages
    # lengthen for a time of 1/λ, varies by (E D² + 2 Var D / λ) / U, with Var D = π²/6 λ⁻² of the first messages.
    n = np.array(study.QUICK.staleness_agents)
    rate = np.array([sum(1 / k for k in range(1, agents)) for agents in n])
    deviation = np.sqrt((1 + np.pi**2 / 6 * (rate**-2 + 2 * rate**-3)) / capacity.UPDATES)
    inverse = np.linalg.pinv(np.stack([1 / rate, np.log(n) / rate], axis=1))[1]
    tolerance = 4 * np.linalg.norm(inverse * deviation)
    found = table.loc["capacity for staleness 1, randomised"]
    assert found["b"] == pytest.approx(inverse.sum(), abs=tolerance)
    assert found["log law off by"] < found["power law off by"]
    opportunistic = table.loc["capacity for staleness 1, opportunistic"]
    assert opportunistic["b"] > found["b"] + 10 * tolerance
    assert opportunistic["power law off by"] < opportunistic["log law off by"]


def test_an_unknown_figure_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown figure 'figure3'.*did you mean"):
        draw.draw(tmp_path, only="figure3")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to .*choose another folder with out"):
        draw.draw(tmp_path / "file", only="figure1")


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown format 'gif'"):
        draw.draw(tmp_path, only="figure1", format="gif")


def test_the_committed_figures_are_those_that_are_drawn_in_full_size():
    committed = {path.stem for path in (Path(__file__).parents[2] / "figures").glob("*.png")}
    assert committed - {"scaling"} == set(draw.FIGURES)  # benchmarks/transition.py draws that one
    assert set(draw.LONG) < set(draw.FIGURES)
    assert study.FULL.width >= 1024
    assert (min(study.FULL.widths), max(study.FULL.widths)) == (64, 4096)
