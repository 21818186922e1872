"""What a step over low-rank pairs holds of a single chip, compiled ahead of time for it."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from spatial_vlm import sharding
from spatial_vlm.commands.setup import master_shapes, over_mesh, settings_of
from spatial_vlm.commands.subsets import parts_of, subset_of
from spatial_vlm.config import load_preset
