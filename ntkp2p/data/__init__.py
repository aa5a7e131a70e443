"""Real data, and how it is dealt out to the agents.

    data = load("mnist", classes=(0, 1), samples=500).split(agents=10, by="label")

`DATASETS` and `PARTITIONS` list what there is by name.
"""

from ntkp2p.data.datasets import Dataset
from ntkp2p.data.load import DATASETS, load
from ntkp2p.data.partition import PARTITIONS, AgentData, split

__all__ = ["DATASETS", "PARTITIONS", "AgentData", "Dataset", "load", "split"]
