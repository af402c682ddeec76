"""Eight virtual CPU devices, one compilation cache, and a clean gin for every test."""

from __future__ import annotations

import os
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# What one test has compiled no other compiles again, other workers and child processes included.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="sbp-jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import gin
import jax
import pytest


@pytest.fixture(autouse=True)
def _no_gin_left_over():
    """Each test binds its own gin values."""
    yield
    gin.clear_config()


@pytest.fixture(scope="module")
def compiled_quickly():
    """For a module whose programs run a few times each: compiling them well takes longer.

    Its child processes compile as it does, so that their numbers are its own bit by bit.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


# The longest modules first, so that no worker is left alone with one at the end.
LONGEST = ("test_bootstrap", "test_train", "test_processes", "test_synthesize")


def pytest_collection_modifyitems(items):
    """Orders modules; within one the tests stay as they stand there."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))
