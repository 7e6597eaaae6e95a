"""Loads backbones from a hub, in a process of its own: huggingface_hub reads its settings once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

COMMIT = "0123456789" * 4
CLIENT = """
import json, sys, time
import torch
from featurecache.features.backbones import load_backbone
found = {}
for case, model in json.loads(sys.argv[1]).items():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    started = time.monotonic()
    try:
        loaded = load_backbone(model)
        found[case] = {"weights": loaded.weights, "dim": loaded.dim}
    except Exception as error:
        found[case] = {"type": type(error).__name__, "error": str(error)}
    found[case]["seconds"] = time.monotonic() - started
    found[case]["undisturbed"] = torch.equal(state, torch.get_rng_state())
print(json.dumps(found))
"""


def run_client(script: str, *arguments: str, **environment: str) -> Any:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "HUGGING"))}
    kept = {n: v for n, v in kept.items() if not n.lower().endswith("_proxy")}
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**kept, **quiet, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
