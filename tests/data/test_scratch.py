"""Tables and arrays in files: what was stored comes back, on a disk that is full as well as after use nothing is left."""

import resource
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ptmrec_dist.data.scratch import IN_MEMORY, Scratch
