"""Every notebook runs from top to bottom, and is committed as it ran.

`python tests/test_notebooks.py` runs them all and writes them back, outputs included.
"""

import base64
import io
import os
import re
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.needs("ipykernel", "nbclient", "nbformat")
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
#: All that a notebook says of the machine it ran on.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
#: Seconds that a cell may take; a notebook takes less than half of it on two idle cores.
TIMEOUT = 120
LARGEST = 1_000_000
# Paths of this or another machine, and what Python, its libraries or the kernel warn of.
UNWANTED = re.compile(r"(?<![\w.])/(?:home|root|tmp|Users|usr|opt)/|[A-Z]:\\\\|Warning\b|ipykernel")


def executed(path: Path):
    """The notebook run by a fresh kernel in its own folder, with this repository's package."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        # Threads that wait for each other make small eigenvalue problems many times slower where cores are shared.
        "OPENBLAS_NUM_THREADS": "1",
    }
    # Without times, and with what a cell prints in one piece, a second run differs in nothing.
    stable = {"record_timing": False, "coalesce_streams": True}
    folder = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources=folder, **stable)
    client.execute(env=environment)
    return notebook


def texts(notebook) -> list[str]:
    """What the outputs say in words."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = [output.get("text", "") for output in outputs]
    return said + [str(v) for output in outputs for k, v in output.get("data", {}).items() if not k.startswith("image")]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, compiled_once, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled_once))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    notebook = executed(path)
    assert not [text for text in texts(notebook) if UNWANTED.search(text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_as_it_ran(path):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [text for text in texts(notebook) if UNWANTED.search(text)]
    assert notebook.metadata == METADATA
    assert path.stat().st_size < LARGEST


def test_there_are_notebooks():
    assert NOTEBOOKS


def written(path: Path) -> None:
    """Run a notebook and write it back, without what differs from machine to machine and from run to run."""
    import nbformat

    notebook = executed(path)
    notebook.metadata = METADATA
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _small(output.data["image/png"])
    nbformat.write(notebook, path)


def _small(png: str) -> str:
    """The same picture in 128 colours, a quarter of the bytes."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(128, kmeans=1, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    for path in NOTEBOOKS:
        written(path)
