"""What processes of the harness need, imported once in the server that they are forked from."""

import atexit
import gc
import importlib
import os
import sys

for name in (
    "featurecache.stages.cache.featurize", "featurecache.stages.cache.augment", "featurecache.cli",
    "featurecache.heads.training", "timm", "torch", "imgaug", "h5py",
):  # fmt: skip
    importlib.import_module(name)

# A garbage collection in a forked process would write to all these objects, so that every page of
# them would be copied.
gc.freeze()
if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    atexit.register(os._exit, 0)  # the server itself has nothing to free either
