"""Eight virtual CPU devices for every test, and a run directory that stages can be called on."""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

import gin


@pytest.fixture(autouse=True)
def _no_gin_left_over():
    """Each test binds its own gin values."""
    yield
    gin.clear_config()
