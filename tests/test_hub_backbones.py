"""`hf-hub:OWNER/NAME`: a network as a repository of a hub describes it."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from featurecache.errors import BadInput
from featurecache.features.backbones import load_backbone
from featurecache.training.tensors import digest_of_tensors
from tests.http_servers import running_server, unused_url
from tests.hub_client import CLIENT, COMMIT, run_client

VIT = "test_vit.r160_in1k"
CONFIG = {
    "architecture": "test_vit",
    "num_classes": 5,
    "pretrained_cfg": {
        "tag": "mine", "input_size": [3, 96, 96], "fixed_input_size": True, "crop_pct": 1.0,
        "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5],
        "num_classes": 5, "classifier": "head", "first_conv": "patch_embed.proj",
    },
}  # fmt: skip
ARGUMENTS = {"global_pool": "avg", "fc_norm": False}
REPOSITORIES = {
    "whole": CONFIG,
    "with arguments": {**CONFIG, "model_args": ARGUMENTS},
    "other library": {"architectures": ["Dinov2Model"], "hidden_size": 64},
    "unknown architecture": {**CONFIG, "architecture": "vit_of_tomorrow"},
    "no weights": CONFIG,
}


class Repositories(http.server.BaseHTTPRequestHandler):
    """The part of a hub that a download of small files speaks with."""

    files: dict[str, bytes]
    revisions: set[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        repository, _, file = self.path.removeprefix("/").partition("/resolve/")
        revision, _, file = file.partition("/")
        self.revisions.add(revision)
        content = self.files.get(f"{repository}/{file}")
        if content is None:
            known = any(name.startswith(f"{repository}/") for name in self.files)
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
            content = b""
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    network = timm.create_model("test_vit", img_size=96, num_classes=5)
    safetensors.torch.save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def hub(weights: Path) -> Iterator[str]:
    files = {}
    for case, config in REPOSITORIES.items():
        folder = f"lab/{case.replace(' ', '-')}"
        files[f"{folder}/config.json"] = json.dumps(config).encode()
        if case != "no weights":
            files[f"{folder}/model.safetensors"] = weights.read_bytes()
    Repositories.files, Repositories.revisions = files, set()
    with running_server(Repositories) as url:
        yield url


def names(*cases: str) -> str:
    return json.dumps({case: f"hf-hub:lab/{case.replace(' ', '-')}" for case in cases})


@pytest.mark.slow
def test_repositories(hub: str, weights: Path, tmp_path: Path) -> None:
    client = CLIENT.replace(
        'found[case] = {"weights": loaded.weights, "dim": loaded.dim}',
        'found[case] = {**loaded.key(), "dim": loaded.dim}',
    )
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path)}
    found = run_client(client, names(*REPOSITORIES, "no repository"), **environment)
    whole, pooled = found["whole"], found["with arguments"]
    # The weights are those of the file, and the preprocessing is the repository's.
    network = timm.create_model("test_vit", img_size=96, num_classes=0)
    state = safetensors.torch.load_file(weights)
    network.load_state_dict({n: t for n, t in state.items() if not n.startswith("head.")})
    assert whole["weights"] == pooled["weights"] == digest_of_tensors(network)
    assert whole["name"] == "test_vit"  # the weights' digest tells them from timm's own
    assert pooled["name"] == 'test_vit{"fc_norm":false,"global_pool":"avg"}'
    for one in (whole, pooled):
        fields = ("input_size", "crop", "interpolation", "mean", "dim")
        assert [one[f] for f in fields] == [96, 1.0, "bilinear", [0.1, 0.2, 0.3], 64]
    for case, kind, said in (
        ("other library", "BadInput", "does not describe a network of timm"),
        ("unknown architecture", "UnknownName", "unknown architecture 'vit_of_tomorrow'"),
        ("no weights", "BackboneUnavailable", "could not download its weights .*lab/no-weights"),
        ("no repository", "BackboneUnavailable", "could not download its config.json.*404"),
    ):
        assert found[case]["type"] == kind, found[case]
        assert "\n" not in found[case]["error"]
        assert re.search(said, found[case]["error"]), found[case]
    name = json.dumps({"revision": "hf-hub:lab/whole@v1"})
    assert run_client(client, name, **environment)["revision"]["weights"] == whole["weights"]
    assert Repositories.revisions == {"main", "v1"}
    # Nobody answers: what was downloaded before is enough, and nothing is retried for long.
    smaller = client.replace("load_backbone(model)", "load_backbone(model, input_size=64)")
    found = run_client(
        smaller, names("whole", "no weights"), HF_ENDPOINT=unused_url(), HF_HOME=str(tmp_path)
    )
    assert found["whole"] | {"seconds": 0} == whole | {"seconds": 0, "input_size": 64}
    assert found["no weights"]["type"] == "BackboneUnavailable"
    assert found["no weights"]["seconds"] < 30


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:a b/c"])
def test_names_that_are_no_repository(name: str) -> None:
    with pytest.raises(BadInput, match=r"expected hf-hub:OWNER/NAME, or"):
        load_backbone(name)
