"""What is cited for a run, and that the list of sources is whole."""

import dataclasses
import re
from pathlib import Path

import pytest

import ntkp2p as p2p
from ntkp2p import models
from ntkp2p.runs.citation import KEYS, citation, references

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "ntkp2p" / "runs" / "citation.py").read_text(encoding="utf-8")
DOCS = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
ALWAYS = {"ntkp2p", "chaudhari2025", "jax2018", "kidger2021equinox", "hoyer2017"}


@pytest.fixture
def run(digits):
    W = p2p.metropolis(p2p.graphs.cycle(4))
    return p2p.Experiment(model=models.affine(), data=digits(), mixing=W, algorithm=p2p.DGD(0.1), rounds=10)


def also(run, **changes):
    """What is cited beyond what always is, and the data."""
    return set(citation(dataclasses.replace(run, **changes)).keys) - ALWAYS - set(KEYS["digits"])


def test_bibtex_has_no_bare_ampersand():
    assert not [key for key, entry in references().items() if re.search(r"(?<!\\)&", entry)]


def test_a_plain_run(run):
    assert set(citation(run).keys) == {*ALWAYS, *KEYS["digits"], "nedic2009", "yuan2016"}


P = p2p.push_weights(p2p.graphs.directed_ring(4))
TOP = p2p.TopK(0.1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"algorithm": p2p.ATC(0.1)}, {"chen2012", "sayed2014"}),
        ({"algorithm": p2p.PushSum(0.1), "mixing": P}, {"kempe2003", "nedic2015", "nedic2016", "assran2019"}),
        ({"algorithm": p2p.CHOCO(0.1, TOP)}, {"koloskova2019"}),
        (
            {"algorithm": p2p.SkewCompensatedSparsePush(0.1, TOP, gradient_rounds=2, gossip_rounds=1), "mixing": P},
            {"kempe2003", "nedic2016", "aketi2021", "stich2018"},
        ),
        (
            {"algorithm": p2p.SparsePush(0.1, TOP, adaptive=0.9), "mixing": P},
            {"kempe2003", "nedic2016", "aketi2021", "stich2018", "aketi2024"},
        ),
        (
            {"algorithm": p2p.Delayed(p2p.CTA(0.1), gradients=1)},
            {"agarwal2011", "tsitsiklis1986", "chen2012", "sayed2014"},
        ),
        ({"algorithm": p2p.LocalSGD(0.1, momentum=0.5)}, {"stich2019", "polyak1964"}),
        ({"model": models.mlp(width=8, depth=1)}, {"nedic2009", "yuan2016", "jacot2018", "lee2019"}),
        (
            {"model": models.resnet20(channels=4)},
            {"nedic2009", "yuan2016", "jacot2018", "lee2019", "he2016", "wu2018"},
        ),
        (
            {"model": models.mlp(width=float("inf"), depth=1)},
            {"nedic2009", "yuan2016", "jacot2018", "lee2019", "neal1996", "lee2018", "novak2020"},
        ),
        ({"model": (None, None)}, {"nedic2009", "yuan2016", "jacot2018", "lee2019"}),
        ({"loss": "cross_entropy"}, {"nedic2009", "yuan2016", "kidger2021"}),
    ],
    ids=lambda value: next(iter(value.values())).__class__.__name__ if isinstance(value, dict) else "",
)
def test_what_a_run_is_made_of(run, changes, expected):
    assert also(run, **changes) == expected


def test_clocks_of_their_own(run):
    clock = p2p.clocks.Exponential(1.0)
    gossip = p2p.AsynchronousGossip(agents=4, update=clock, gossip=clock)
    local = {"algorithm": p2p.LocalSGD(0.1), "rounds": 200}
    timely = {"stich2019", "mitra2024", "lian2018", "boyd2006"}
    assert also(run, mixing=gossip, **local) == timely
    assert also(run, mixing=gossip.simulate(events=200, seed=0), **local) == timely
    freshest = dataclasses.replace(gossip, scheme="opportunistic", cap=(3, 1.0))
    assert also(run, mixing=freshest, **local) == timely | {"mitra2022", "draco2024"}


def test_data_and_their_deal(run, digits):
    assert also(run, data=digits(by="dirichlet", alpha=1.0)) == {"nedic2009", "yuan2016", "hsu2019"}
    images = p2p.data.load("mnist", samples=8, test_samples=0).split(agents=4)
    assert set(KEYS["mnist"]) <= also(run, data=images)
    assert not set(KEYS["digits"]) & set(citation(dataclasses.replace(run, data=images)).keys)


def test_an_algorithm_of_ones_own_cites_what_it_builds_on(run):
    class Lazier(p2p.DGD):
        pass

    class Unheard(p2p.Algorithm):
        def round(self, state, world):
            return world.mix(state)

    assert also(run, algorithm=Lazier(0.1)) == {"nedic2009", "yuan2016"}
    assert also(run, algorithm=Unheard(0.1)) == set()


def test_it_reads_as_what_it_is(run):
    cited = citation(run)
    assert isinstance(cited, str)
    assert repr(cited) == str(cited) == "\n\n".join(references()[key] for key in cited.keys)
    assert f"version = {{{p2p.__version__}}}" in cited
    with pytest.raises(TypeError, match="citation takes an Experiment, found ndarray"):
        citation(run.mixing)


def test_every_entry_is_bibtex():
    for key, entry in references().items():
        lines = entry.splitlines()
        assert re.fullmatch(rf"@(article|book|inproceedings|misc|phdthesis|software){{{key},", lines[0])
        assert all(re.fullmatch(r"  \w+ = \{.+\},", line) for line in lines[1:-1])
        assert lines[-1] == "}"
        assert entry.count("{") == entry.count("}")
        assert "  title = " in entry


def test_every_key_has_an_entry_and_every_entry_a_use():
    quoted = set(re.findall(r'"([a-z]+\d{4}[a-z]*|ntkp2p)"', SOURCE))
    linked = set(re.findall(r"references\.md#(\w+)", DOCS))
    assert quoted | linked == set(references())


def test_the_version_is_one():
    facts = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", facts, re.M)[1] == p2p.__version__
    assert re.search(r'^title: "(.+)"$', facts, re.M)[1] in references()["ntkp2p"]
    paper = references()["chaudhari2025"]
    assert re.search(r"^  title: (.+)$", facts, re.M)[1] in paper
    assert re.search(r"arXiv:([\d.]+)", facts)[1] in paper
