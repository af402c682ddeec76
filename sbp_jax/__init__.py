"""Synthetic Bootstrapped Pretraining in JAX."""

import os
import pathlib

# The TPU compiler's library, wherever it is installed, asks this machine about its TPUs when JAX is
# imported, and complains at length if it has none: `sbp plan` needs it exactly there.
NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # without chips there is nothing to quarrel about
}

_devices = pathlib.Path("/dev")
if not any(_devices.glob("accel*")) and not any(_devices.glob("vfio/[0-9]*")):
    for _name, _value in NO_TPU_HERE.items():
        os.environ.setdefault(_name, _value)
