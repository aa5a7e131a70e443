"""The documentation's programs run, and what it names is there."""

import functools
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import ntkp2p as p2p
from ntkp2p import algorithms, asynchrony, data, dynamics, kernels, models, topology

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
REFERENCE = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.rst"))
#: Whose blocks are run, a page's in turn and in one namespace.
RUN = ("start", "extending", "mathematics")


def programs(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.parametrize("page", RUN)
def test_blocks_run(page):
    namespace = {"__name__": page}
    blocks = programs(ROOT / "docs" / f"{page}.md")
    assert blocks
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page}.md, block {number}", "exec"), namespace)
    plt.close("all")


def test_recipes_run_after_the_ten_lines():
    namespace = {"__name__": "recipes"}
    blocks = [*programs(ROOT / "docs" / "start.md")[:1], "import dataclasses\n"]
    blocks += [block for block in programs(ROOT / "docs" / "recipes.md") if "math.inf" not in block]
    assert len(blocks) > 6
    for number, block in enumerate(blocks):
        exec(compile(block, f"recipes.md, block {number}", "exec"), namespace)
        plt.close("all")


@pytest.mark.needs("neural-tangents")
def test_the_recipe_for_infinite_width_runs():
    namespace = {"__name__": "recipes"}
    blocks = [*programs(ROOT / "docs" / "start.md")[:1], "import dataclasses\n"]
    blocks += [block for block in programs(ROOT / "docs" / "recipes.md") if "math.inf" in block]
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "recipes.md", "exec"), namespace)
    plt.close("all")


def rows_of(text):
    return [line.strip() for line in text.splitlines() if line.startswith("|")]


def test_the_errors_in_the_readme_are_those_that_figures_wrote():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = rows_of(readme.partition("[figures/errors.md](figures/errors.md)")[2].partition("An affine model")[0])
    written = rows_of((ROOT / "figures" / "errors.md").read_text(encoding="utf-8"))
    assert quoted[:2] == written[:2]
    assert len(quoted) > 6
    assert set(quoted) <= set(written)


def test_quoted_costs_are_those_that_benchmarks_wrote():
    """Each number with a unit in the table rounds a number in the file that its row names."""
    checked = 0
    for row in rows_of((ROOT / "docs" / "cost.md").read_text(encoding="utf-8")):
        if (named := re.search(r"`(benchmarks/\w+\.txt)`", row)) is None:
            continue
        numbers = re.findall(r"[\d,]+\.?\d*", (ROOT / named[1]).read_text(encoding="utf-8"))
        known = {float(number.replace(",", "")) for number in numbers if number.strip(",")}
        for quoted in re.findall(r"([\d.]+) (?:s|MiB|GiB)\b", row):
            digits = len(quoted.partition(".")[2])
            assert any(f"{number:.{digits}f}" == quoted for number in known), (named[1], quoted)
            checked += 1
    assert checked > 15


def test_code_blocks_fit_the_first_page():
    for page in [ROOT / "README.md", *PAGES]:
        text = page.read_text(encoding="utf-8")
        lines = "".join(re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M)).splitlines()
        lines += [
            line[4:] for block in re.findall(r"^\n((?: {4}[^\n]*\n)+)", text, re.M) for line in block.splitlines()
        ]
        assert not [line for line in lines if len(line) > 88], page.name


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_what_is_named_is_there(page):
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"\bp2p((?:\.[A-Za-z]\w*)+)", text)):
        functools.reduce(getattr, name.split(".")[1:], p2p)
    for block in programs(page):
        compile(block, page.name, "exec")
    for target in re.findall(r"(?<!\\)\]\(([^)#:\s]+)[^)\s]*\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:ntkp2p|tests|benchmarks)/[\w/]+\.\w+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "package", [p2p, algorithms, asynchrony, data, dynamics, kernels, models, topology], ids=lambda m: m.__name__
)
def test_what_is_public_is_in_the_reference(package):
    entries = set(re.findall(r"^\.\. auto\w+:: (\w+)$", REFERENCE, re.M))
    pages = set(re.findall(r"^\.\. currentmodule:: ntkp2p\.(?:\w+\.)?(\w+)$", REFERENCE, re.M))
    tables = {name for name in package.__all__ if name.isupper() and isinstance(getattr(package, name), dict)}
    assert set(package.__all__) - entries - pages - tables == set()
