"""A real Ray cluster of several nodes on this machine: nodes die and come, the cache is equal."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import featurecache
from featurecache import versions
from featurecache.errors import BadInput, MissingExtra
from featurecache.executors import ray_cluster as module
from featurecache.executors.ray_cluster import Cluster
from featurecache.executors.scheduler import schedule
from featurecache.features.store import Cache
from featurecache.stages.cache.featurize import featurize
from featurecache.stages.cache.ls import ls
from tests.test_scheduler import CrewContract, start

# Ray leaves sockets and files open, and warns of itself.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster whose head does no work, and two machines of one core that do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))  # for what tests send
        from ray.cluster_utils import Cluster as Nodes

        found = Nodes(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            found.add_node(num_cpus=1)
        yield found
        found.shutdown()


class TestCluster(CrewContract):
    @pytest.fixture(autouse=True)
    def _address(self, nodes: Any) -> None:
        self.address = nodes.address

    def crew(self, context: Any) -> Any:
        return Cluster(start, context, self.address, max_workers=2)

    def test_a_machine_that_is_gone_is_not_waited_for(self, nodes: Any, tmp_path: Path) -> None:
        crew = Cluster(start, (tmp_path, ""), self.address)
        joined: list[str] = []
        lost: list[str] = []
        sent: list[int] = []
        more: list[str] = []

        def tasks() -> Iterator[tuple[str, int]]:
            """Until a machine that came late has done one: how soon it comes is not ours."""
            for n in range(20_000):
                if set(more) - set(joined):
                    return
                sent.append(n)
                yield "do", n

        try:
            results = schedule(crew, tasks(), lost.append)
            while len(joined) < 40 or len(set(joined)) < 2:  # both machines have begun
                joined.append(next(results)[1])
            nodes.remove_node(nodes.worker_nodes.copy().pop(), allow_graceful=False)
            nodes.add_node(num_cpus=1)
            for _, place in results:
                more.append(place)
        finally:
            crew.close()
        # A busy driver may hear of the same worker several times before Ray knows that it is gone.
        assert len(joined) + len(more) == len(sent) and 1 <= len(lost) <= 8
        assert set(more) - set(joined), "the machine that came late did nothing"

    def test_gpus_that_there_are_not(self) -> None:
        with pytest.raises(BadInput, match=r"no machine .* has 1 GPUs.*--max-workers"):
            Cluster(start, None, self.address, gpus=1)

    def test_machines_that_never_come(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "AUTOSCALER_SECONDS", 1.0)
        crew = Cluster(start, None, self.address, gpus=1, max_workers=2)
        try:
            with pytest.raises(BadInput, match="no machine with 1 GPUs and a core joined"):
                list(schedule(crew, [("do", 1)]))
        finally:
            crew.close()

    @pytest.mark.parametrize(
        ("address", "said"),
        [
            ("127.0.0.1:9", r"nothing answers at 127.0.0.1:9 .*ray start --head"),
            ("no.such.host.invalid:6379", "nothing answers at no.such.host"),
            ("127.0.0.1", "must be HOST:PORT"),
            ("ray://127.0.0.1:10001", "must be HOST:PORT"),
            (":1", "must be HOST:PORT"),
        ],
    )
    def test_an_address_where_nobody_is(self, address: str, said: str) -> None:
        with pytest.raises(BadInput, match=said):
            Cluster(start, None, address)

    def test_another_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import ray

        monkeypatch.setattr(ray, "__version__", "9.9.9")
        with pytest.raises(BadInput, match=r"its versions of Ray or Python differ: .*9\.9\.9"):
            Cluster(start, None, self.address)

    def test_another_version_of_this_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Workers compare before they open what they were sent."""
        real = versions.installed_versions
        monkeypatch.setattr(
            "featurecache.executors.ray_cluster.installed_versions",
            lambda *names: real(*names) | {"featurecache": "9.9.9"},
        )
        crew = self.crew((tmp_path, "is not asked"))
        monkeypatch.undo()
        said = rf"vm.*: has featurecache {featurecache.__version__}, not 9\.9\.9: install the"
        try:
            with pytest.raises(BadInput, match=said.replace("vm", socket.gethostname())):
                list(schedule(crew, [("do", 1)]))
        finally:
            crew.close()


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'featurecache\[ray\]'"):
        Cluster(start, None)


# ---- the command, on the cluster ----

COMMAND = [sys.executable, "-m", "featurecache"]
VIEWS = ["--policy", "none", "--policy", "color_1"]
TINY = ["--backbone", "efficientnet_lite0", "--input-size", "32", "--engine", "torch-cpu"]


@pytest.fixture
def words(nodes: Any, small_data: Path, tmp_path: Path) -> list[str]:
    """`featurize` of the small dataset on the cluster, in 26 shards."""
    words = [*COMMAND, "featurize", "--data", str(small_data), "--cache", str(tmp_path / "cache")]
    words += [*VIEWS, *TINY, "--workers", "0", "--shard-rows", "2", "--json"]
    return [*words, "--executor", "ray", "--address", nodes.address]


def begun(words: list[str], **environment: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    env = os.environ | environment
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=env)


def refused(words: list[str], **environment: str) -> str:
    """The one line that a command gives which begins nothing."""
    job = begun(words, **environment)
    out, err = job.communicate(timeout=600)
    assert (job.returncode, out) == (2, ""), err
    lines = [line for line in err.splitlines() if line.startswith("featurecache: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def committed(cache: Path) -> int:
    return len([p for p in cache.glob("spaces/*/*.json") if p.name != "space.json"])


def wait_for(shards: int, cache: Path, job: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 600
    while committed(cache) < shards and job.poll() is None and time.monotonic() < until:
        time.sleep(0.005)


def check_equal(cache: Path, small_cache: Path) -> None:
    """Complete, what one process makes, and no row in two shards."""
    wanted = {row["view"]: row["root_hash"] for row in ls(small_cache)}
    assert {row["view"]: row["root_hash"] for row in ls(cache)} == wanted
    for space in Cache(cache).spaces():
        assert sum(len(record.item_list) for record in space.records) == len(space.rows) == 48


def test_machines_killed_three_times(
    words: list[str], nodes: Any, small_cache: Path, tmp_path: Path
) -> None:
    """The same, many times over, on real pictures: python -m benchmarks.scale --kill."""
    chance = random.Random(1)
    job = begun(words)
    for shards in sorted(chance.sample(range(1, 40), 3)):
        wait_for(shards, tmp_path / "cache", job)
        victim = chance.choice(sorted(nodes.worker_nodes, key=id))
        nodes.remove_node(victim, allow_graceful=False)
        nodes.add_node(num_cpus=1)
    out, err = job.communicate(timeout=600)
    assert job.returncode == 0, err
    # A shard may be made twice, never committed twice; one whose worker was killed after it had
    # committed and before it had reported counts as a hit.
    result = json.loads(out)
    assert result["computed"] + result["hits"] == 96
    check_equal(tmp_path / "cache", small_cache)


def test_a_driver_killed_and_started_again(
    words: list[str], small_cache: Path, tmp_path: Path
) -> None:
    job = begun(words)
    wait_for(5, tmp_path / "cache", job)
    job.kill()
    job.communicate(timeout=60)
    before = committed(tmp_path / "cache")
    assert 5 <= before < 48
    job = begun(words)
    out, err = job.communicate(timeout=600)
    assert job.returncode == 0, err
    said = json.loads(out)
    # Workers of the dead driver may have ended a shard after it was counted.
    assert said["computed"] + said["hits"] == 96 and said["computed"] <= 96 - 2 * before
    check_equal(tmp_path / "cache", small_cache)


def test_two_parts_and_the_cluster_at_once(
    words: list[str], small_cache: Path, tmp_path: Path
) -> None:
    alone = words[: words.index("--executor")]
    jobs = [begun(words), *(begun([*alone, "--part", part]) for part in ("1/2", "2/2"))]
    said = [job.communicate(timeout=600) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], said
    results = [json.loads(out) for out, _ in said]
    assert all(result["computed"] + result["hits"] <= 96 for result in results)
    assert sum(result["computed"] for result in results) >= 96
    check_equal(tmp_path / "cache", small_cache)


def test_a_stopped_driver_takes_its_workers_along(words: list[str], tmp_path: Path) -> None:
    job = begun(words)
    wait_for(3, tmp_path / "cache", job)
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130 and "interrupted; committed work is kept" in err
    time.sleep(1)
    before = committed(tmp_path / "cache")
    time.sleep(2)
    assert committed(tmp_path / "cache") == before


def test_an_image_that_was_edited_meanwhile_is_left_to_the_next_run(
    words: list[str], small_data: Path, tmp_path: Path
) -> None:
    """It is listed as failed; the other row of its shard and all other shards are committed."""
    data = Path(shutil.copytree(small_data, tmp_path / "data"))
    words[words.index("--data") + 1] = str(data)
    job = begun(words)
    until = time.monotonic() + 60
    assert job.stderr is not None
    while "hash images" not in job.stderr.readline() and time.monotonic() < until:
        pass
    (data / "val/owl/003.png").write_bytes(b"other")
    out, err = job.communicate(timeout=600)
    assert job.returncode == 3, err
    assert {row["path"] for row in json.loads(out)["failed"]} == {"val/owl/003.png"}
    assert sum(space.count for space in Cache(tmp_path / "cache").spaces()) == 2 * 47
    assert committed(tmp_path / "cache") == 48


def test_a_machine_that_sees_another_dataset_is_refused(small_data: Path, tmp_path: Path) -> None:
    """One whose folder of this name is another: nothing is begun there. (The cache: test_make.)"""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    data = Path(shutil.copytree(small_data, tmp_path / "data"))
    cache, empty = tmp_path / "cache", tmp_path / "empty"
    cache.mkdir()
    empty.mkdir()
    from ray.cluster_utils import Cluster as Nodes

    found = Nodes(initialize_head=True, head_node_args={"num_cpus": 0})
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", found.address]
    script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    shell = ["unshare", "-m", "sh", "-c", script, "sh", str(empty), str(data)]
    with subprocess.Popen(
        [*shell, *ray, "--num-cpus", "1", "--block"], stdout=subprocess.DEVNULL
    ) as machine:
        try:
            time.sleep(5)
            words = [*COMMAND, "featurize", "--data", str(data), "--cache", str(cache), *TINY]
            words += ["--executor", "ray", "--address", found.address, "--json"]
            said = refused([*words, "--max-workers", "1"])
            assert f"does not see the dataset ({data}" in said
        finally:
            machine.terminate()
            machine.wait(30)
            found.shutdown()


def test_the_cluster_makes_what_one_process_makes(
    nodes: Any, small_data: Path, small_cache: Path, tmp_path: Path
) -> None:
    said: list[tuple[int, int, str]] = []
    made = featurize(
        small_data, policy=["none", "color_1"], cache=tmp_path / "cache", input_size=32,
        backbone="efficientnet_lite0", engine="torch-cpu", workers=0, shard_rows=2,
        executor="ray", address=nodes.address,
        progress=lambda done, total, what: said.append((done, total, what)),
    )  # fmt: skip
    assert made.computed + made.hits == 96
    assert {space["root_hash"] for space in made.spaces} == {
        row["root_hash"] for row in ls(small_cache)
    }
    check_equal(tmp_path / "cache", small_cache)
    assert any("starting workers" in what for _, _, what in said)
    done, total, last = [row for row in said if row[2].startswith("featurize (")][-1]
    assert done == total and "%" in last  # the shares of the machines
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    assert list((tmp_path / "cache" / "locks").iterdir()) == []
