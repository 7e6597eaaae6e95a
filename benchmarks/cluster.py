"""`python -m benchmarks.cluster --data DIR [--times N]`: machines of a Ray cluster are killed.

A head that does no work and three nodes of one core each, all on this machine, fill a cache; in
every run three nodes are killed at random moments, and others join. After each the cache must be
complete, equal to what one process makes, and hold no row twice. Prints the table of
docs/cluster.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from featurecache.features.store import Cache
from featurecache.stages.cache.ls import ls

KILLS = 3
SETTING = ["--backbone", "efficientnet_lite0", "--input-size", "96", "--shard-rows", "16"]
VIEWS = ["--policy", "none", "--policy", "color_1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster of this process alone
    from ray.cluster_utils import Cluster as Nodes

    nodes: Any = Nodes(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(3):
        nodes.add_node(num_cpus=1)
    chance = random.Random(given.seed)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder, "one"), Path(folder, "many")
        words = [sys.executable, "-m", "featurecache", "featurize", "--data", given.data, "--json"]
        words += [*SETTING, *VIEWS, "--quiet"]
        subprocess.run([*words, "--cache", str(one)], check=True, stdout=subprocess.DEVNULL)
        wanted = {row["view"]: row["root_hash"] for row in ls(one)}
        shards = _shards(one)
        print(f"{shards} shards\n\n| run | killed when … were committed | s | equal | computed |")
        print("|---|---|---|---|---|")
        for number in range(given.times):
            shutil.rmtree(many, ignore_errors=True)
            begun = time.monotonic()
            job = subprocess.Popen(
                [*words, "--cache", str(many), "--executor", "ray", "--address", nodes.address],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            killed = []
            for at in sorted(chance.sample(range(1, shards * 5 // 6), KILLS)):
                while _shards(many) < at and job.poll() is None:
                    time.sleep(0.01)
                if job.poll() is None:
                    victim = chance.choice(sorted(nodes.worker_nodes, key=id))
                    nodes.remove_node(victim, allow_graceful=False)
                    nodes.add_node(num_cpus=1)
                    killed.append(str(_shards(many)))
            out, err = job.communicate()
            equal = job.returncode == 0 and _same(many, wanted)
            bad += not equal
            computed = json.loads(out)["computed"] if job.returncode == 0 else err.strip()[-300:]
            took = time.monotonic() - begun
            print(
                f"| {number + 1} | {', '.join(killed)} | {took:.0f} | {equal} | {computed:,} |",
                flush=True,
            )
    nodes.shutdown()
    print(f"\n{given.times} runs, {bad} bad")
    sys.exit(bool(bad))


def _shards(cache: Path) -> int:
    return len([path for path in cache.glob("spaces/*/*.json") if path.name != "space.json"])


def _same(cache: Path, wanted: dict[str, str]) -> bool:
    """Complete, equal, and no row in two shards."""
    once = all(
        sum(len(record.item_list) for record in space.records) == len(space.rows)
        for space in Cache(cache).spaces()
    )
    return once and {row["view"]: row["root_hash"] for row in ls(cache)} == wanted


if __name__ == "__main__":
    main()
