"""Partitions: every sample is dealt once, as its name says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntkp2p.data import PARTITIONS, AgentData, Dataset, load, split


def classification(labels):
    """Samples whose only input is their row, so that each can be told from the others."""
    labels = np.asarray(labels)
    classes = tuple(range(10, 10 + max(2, labels.max() + 1)))
    inputs = np.arange(labels.size, dtype=float)[:, None]
    return Dataset(name="made", inputs=inputs, targets=-inputs, labels=labels, classes=classes)


def table(data):
    """Samples of each class (columns) at each agent (rows)."""
    counts = np.zeros((data.agents, len(data.classes)), int)
    np.add.at(counts, (data.owner, data.labels), 1)
    return counts


# The data sets are made in the tests: beartype, where it is switched on, looks at random items,
# and hypothesis forbids `random` inside strategies.
some_labels = st.lists(st.integers(0, 3), min_size=1, max_size=60)
seeds = st.integers(0, 2**32)


@st.composite
def deals(draw):
    labels = draw(some_labels)
    agents = draw(st.integers(1, len(labels)))
    options = draw(
        st.sampled_from([{"by": "iid"}, {"by": "label"}])
        | st.fixed_dictionaries({"by": st.just("skew"), "skew": st.floats(0, 1)})
    )
    return labels, agents, {**options, "seed": draw(seeds)}


@given(deals())
def test_every_sample_is_dealt_once_in_equal_parts(deal):
    labels, agents, options = deal
    dataset = classification(labels)
    data = dataset.split(agents, **options)
    assert data.agents == agents
    assert sorted(np.concatenate(data.indices)) == list(range(dataset.samples))
    assert data.sizes.max() - data.sizes.min() <= 1
    assert data.samples == dataset.samples


@given(some_labels, seeds, st.floats(0.5, 1e6))
def test_dirichlet_deals_every_sample_once_and_leaves_nobody_without(labels, seed, alpha):
    dataset = classification(labels)
    agents = min(3, 1 + dataset.samples // 12)
    data = split(dataset, agents, by="dirichlet", alpha=alpha, seed=seed)
    assert sorted(np.concatenate(data.indices)) == list(range(dataset.samples))
    assert data.sizes.min() >= 1


@given(deals())
def test_arrays_are_in_agent_order(deal):
    labels, agents, options = deal
    dataset = classification(labels)
    data = split(dataset, agents, **options)
    for agent, rows in enumerate(data.indices):
        here = data.owner == agent
        assert np.array_equal(data.inputs[here], dataset.inputs[rows])
        assert np.array_equal(data.targets[here], dataset.targets[rows])
        assert np.array_equal(data.labels[here], dataset.labels[rows])
    assert np.all(np.diff(data.owner) >= 0)


@given(deals())
def test_a_deal_follows_its_seed(deal):
    labels, agents, options = deal
    dataset = classification(labels)
    first, again = (split(dataset, agents, **options) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.indices, again.indices, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"by": "iid"},
        {"by": "label"},
        {"by": "dirichlet", "alpha": 1},
        {"by": "skew", "skew": 0.5},
    ],
)
def test_another_seed_deals_otherwise(options):
    dataset = classification(np.arange(60) % 3)
    one, two = (split(dataset, 4, **options, seed=seed) for seed in (0, 1))
    assert any(set(a) != set(b) for a, b in zip(one.indices, two.indices, strict=True))


@given(some_labels, st.data())
def test_label_deals_in_the_order_of_the_labels(labels, data):
    dataset, agents = classification(labels), data.draw(st.integers(1, len(labels)))
    dealt = split(dataset, agents, by="label")
    assert np.all(np.diff(dealt.labels) >= 0)
    # Contiguous chunks cut the classes in at most agents − 1 places.
    assert np.count_nonzero(table(dealt)) <= np.unique(dataset.labels).size + agents - 1


def test_label_gives_two_agents_one_class_each():
    data = load("mnist", classes=(0, 1), samples=40, test_samples=2).split(2, by="label")
    assert table(data).tolist() == [[20, 0], [0, 20]]
    assert table(data.dataset.split(10, by="label")).max(axis=1).tolist() == [4] * 10


def test_label_sorts_a_regression_by_its_first_target():
    data = load("regression", samples=50, outputs=2).split(5, by="label")
    assert np.all(np.diff(data.targets[:, 0]) >= 0)
    assert data.sizes.tolist() == [10] * 5
    assert data.labels is None


def test_iid_mixes_classes():
    counts = table(classification(np.arange(4000) % 2).split(4, by="iid"))
    # 1,000 of 4,000 without replacement: the standard deviation is 13.7.
    assert np.abs(counts - 500).max() < 70


@given(some_labels, seeds)
def test_full_skew_is_label(labels, seed):
    dataset, agents = classification(labels), 1 + len(labels) // 4
    by_skew = split(dataset, agents, by="skew", skew=1, seed=seed)
    by_label = split(dataset, agents, by="label", seed=seed)
    assert np.array_equal(by_skew.labels, by_label.labels)
    assert np.array_equal(by_skew.owner, by_label.owner)


def test_skew_interpolates():
    dataset = classification(np.arange(4000) % 4)
    purity = [
        table(split(dataset, 4, by="skew", skew=skew)).max(axis=1).mean() / 1000 for skew in (0, 0.25, 0.5, 0.75, 1)
    ]
    # A share s of one class and (1 − s)/4 of every class.
    assert np.allclose(purity, [0.25, 0.4375, 0.625, 0.8125, 1.0], atol=0.04)


def test_no_skew_has_the_distribution_of_iid():
    dataset = classification(np.arange(30) % 2)
    means = {
        by: np.mean([table(split(dataset, 3, seed=s, **options))[0, 0] for s in range(400)])
        for by, options in (("iid", {"by": "iid"}), ("skew", {"by": "skew", "skew": 0.0}))
    }
    # Hypergeometric with mean 5 and standard deviation 1.3 / √400.
    assert abs(means["iid"] - 5) < 0.3
    assert abs(means["skew"] - 5) < 0.3


def test_skew_sorts_a_share_of_a_regression():
    dataset = load("regression", samples=400)
    spread = [np.std([y.mean() for y in np.split(dataset.split(4, by="skew", skew=s).targets, 4)]) for s in (0, 0.5, 1)]
    assert spread[0] < 0.5 * spread[1] < 0.5 * spread[2]


def test_dirichlet_goes_from_one_owner_to_even():
    dataset = classification(np.arange(5000) % 10)

    def largest_share(alpha):
        counts = table(split(dataset, 5, by="dirichlet", alpha=alpha))
        return (counts.max(axis=0) / 500).mean()

    assert largest_share(0.02) > 0.9
    assert largest_share(1e6) < 0.21
    assert 0.3 < largest_share(1) < 0.7


def test_dirichlet_draws_again_until_everybody_has_samples():
    # One class in two: with alpha 0.05 most draws leave one of the three agents with nothing.
    dataset = classification(np.arange(20) % 2)
    for seed in range(10):
        assert split(dataset, 3, by="dirichlet", alpha=0.05, seed=seed).sizes.min() >= 1


def test_what_the_data_set_says_is_passed_on():
    dataset = load("digits", samples=20, test_samples=6)
    data = dataset.split(4)
    assert data.test_inputs is dataset.test_inputs
    assert data.test_targets is dataset.test_targets
    assert data.test_labels is dataset.test_labels
    assert (data.name, data.classes, data.outputs) == ("digits", (0, 1), 1)
    assert (data.input_shape, data.samples, data.agents) == ((8, 8, 1), 20, 4)


eight = classification([0, 1] * 4)


@pytest.mark.parametrize(
    ("agents", "options", "match"),
    [
        (10, {}, "8 samples cannot be dealt to 10 agents: take fewer agents or more samples"),
        (0, {}, "agents must be a whole number of at least 1, found 0"),
        (2.5, {}, "agents must be a whole number of at least 1, found 2.5"),
        (True, {}, "agents must be a whole number"),
        (2, {"by": "lable"}, r"unknown partition 'lable' \(did you mean 'label'\?\); known: iid"),
        (2, {"seed": -1}, "seed must be a whole number of at least 0, found -1"),
        (2, {"by": "dirichlet"}, "by='dirichlet' needs alpha"),
        (2, {"by": "dirichlet", "alpha": 0}, "alpha must be a finite number above 0, found 0"),
        (2, {"by": "dirichlet", "alpha": np.inf}, "alpha must be a finite number above 0, found inf"),
        (2, {"by": "dirichlet", "alpha": 1, "skew": 1}, "by='dirichlet' takes no skew"),
        (8, {"by": "dirichlet", "alpha": 1e-6}, "in 100 draws with alpha=1e-06 one of the 8"),
        (2, {"by": "skew"}, "by='skew' needs skew"),
        (2, {"by": "skew", "skew": -0.1}, "skew must be a number from 0 to 1, found -0.1"),
        (2, {"by": "skew", "skew": 1.1}, "skew must be a number from 0 to 1, found 1.1"),
        (2, {"by": "skew", "skew": np.nan}, "skew must be a number from 0 to 1, found nan"),
        (2, {"alpha": 0.1}, "by='iid' takes no alpha"),
        (2, {"by": "label", "skew": 0.1}, "by='label' takes no skew"),
    ],
)
def test_split_refuses(agents, options, match):
    with pytest.raises(ValueError, match=match):
        eight.split(agents, **options)


def test_dirichlet_refuses_a_regression():
    with pytest.raises(ValueError, match="by='dirichlet' needs classes and regression has none"):
        load("regression", samples=10).split(2, by="dirichlet", alpha=1)


def test_every_partition_is_documented():
    for name in PARTITIONS:
        assert f"\n        ``{name}``" in (split.__doc__ or "")


def test_a_partition_of_ones_own():
    data = AgentData(dataset=eight, indices=(np.array([7, 0]), np.array([3], np.int32)))
    assert data.sizes.tolist() == [2, 1]
    assert data.samples == 3
    assert data.inputs.ravel().tolist() == [7, 0, 3]
    assert data.owner.tolist() == [0, 0, 1]
    assert repr(data) == "AgentData('made': 3 samples, 2 agents with 1 to 2 each, dealt by hand)"


@pytest.mark.parametrize(
    ("indices", "match"),
    [
        ((), "indices name no agents"),
        (([0], []), "agent 1 has no samples"),
        (([0, 8],), "contain row 8, but the rows of made are 0 to 7"),
        (([0], [-1]), "contain row -1, but"),
        (([0, 1], [1, 2, 0]), r"contain row 0 more than once \(first of 2\)"),
        (([0.0, 1.0],), "agent 0's rows must be whole numbers .* not float64"),
        (([True, False],), "agent 0's rows must be whole numbers .* not bool"),
        (([[0, 1]],), r"agent 0's rows must be .* of shape \(1, 2\)"),
    ],
)
def test_a_partition_of_ones_own_is_checked(indices, match):
    with pytest.raises(ValueError, match=match):
        AgentData(dataset=eight, indices=tuple(map(np.asarray, indices)))


def test_agent_data_shows_itself():
    data = eight.split(2, by="skew", skew=1)
    assert repr(data) == ("AgentData('made': 8 samples, 2 agents with 4 each, dealt by skew, skew=1)")
    html = data._repr_html_()
    assert "<th>class 10</th><th>class 11</th><th>all</th>" in html
    assert "<td>0</td><td>4</td><td>0</td><td>4</td>" in html
    assert "<td>1</td><td>2</td>" in load("regression", samples=4).split(2)._repr_html_()
