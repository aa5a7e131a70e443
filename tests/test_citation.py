"""What is cited, and that the list of sources is whole."""

import dataclasses
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

import ntkp2p as p2p
from ntkp2p import citation as module  # the function: the package's attribute of that name
from ntkp2p.citation import KEYS, citation, references
