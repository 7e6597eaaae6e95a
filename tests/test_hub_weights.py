"""Published weights: what a download asks a hub for, and what a hub that fails leads to."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from featurecache.features.backbones import load_backbone, load_module
from tests.http_servers import running_server, unused_url
from tests.hub_client import CLIENT, COMMIT, run_client
from tests.test_weights import Evil

MODELS = {
    "whole": "test_efficientnet.r160_in1k",  # as the hub serves large files: by a redirect
    "pickled": "test_resnet.r160_in1k",  # an old repository, with a pytorch_model.bin alone
    "evil": "test_byobnet.r160_in1k",  # such a one, with code in it
    "no repository": "test_vit.r160_in1k",
    "no file": "test_vit2.r160_in1k",
    "down": "test_vit3.r160_in1k",  # 503
    "ends early": "test_convnext.r160_in1k",  # the connection breaks in the middle, every time
    "short": "test_convnext2.r160_in1k",  # fewer bytes than announced
    "corrupt": "test_nfnet.r160_in1k",
    "lacks tensors": "test_convnext3.r160_in1k",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of a hub that a download of weights speaks with."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]  # case -> what its repository holds
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/cdn/"):
            content = self.files[self.path.removeprefix("/cdn/")]
            return self.reply(200, {"Content-Length": str(len(content))}, content if body else b"")
        parsed = re.fullmatch(r"/timm/([^/]+)/resolve/main/([^/]+)", self.path)
        case = {m: c for c, m in MODELS.items()}.get(parsed.group(1) if parsed else "")
        if parsed is None or case is None or case == "no repository":
            return self.reply(404, {"X-Error-Code": "RepoNotFound", "Content-Length": "0"})
        if case == "down":
            return self.reply(503, {"Content-Length": "0"})
        here = "pytorch_model.bin" if case in ("pickled", "evil") else "model.safetensors"
        if case == "no file" or parsed.group(2) != here:
            missing = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            return self.reply(404, {**missing, "Content-Length": "0"})
        content = self.files[case]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"X-Repo-Commit": COMMIT, "ETag": etag, "Accept-Ranges": "bytes"}
        if case == "whole":  # to another host, as far as a client can see
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
            headers["Location"] = f"http://localhost:{self.server.server_address[1]}/cdn/{case}"
            return self.reply(302, {**headers, "Content-Length": "0"})
        half, length = len(content) // 2, len(content)
        start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        if case == "ends early" and body:
            self.close_connection = True
            status = 206 if start else 200
            headers["Content-Range"] = f"bytes {start}-{length - 1}/{length}"
            headers["Content-Length"] = str(length - start)
            return self.reply(status, headers, content[start:half])
        if case == "short" and body:
            content = content[:half]
        headers["Content-Length"] = str(len(content))
        return self.reply(200, headers, content if body else b"")

    def reply(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    """The files that the hub serves, and the folder that the evil one would make."""
    folder = tmp_path_factory.mktemp("published")
    made = folder / "made"
    files = {}
    for case, model in MODELS.items():
        if case in ("no repository", "no file", "down"):
            continue
        state = dict(load_module(model, "random", classifier=True).state_dict())
        name = next(iter(state))
        state[name] = state[name] + 1  # not what `random` gives
        files[case] = folder / f"{case}.{'bin' if case in ('pickled', 'evil') else 'safetensors'}"
        if case == "lacks tensors":
            del state[name]
        if case == "pickled":
            torch.save(state, files[case])
        elif case == "evil":
            torch.save({**state, "extra": Evil(made)}, files[case])
        else:
            safetensors.torch.save_file(state, files[case])
    whole = files["corrupt"].read_bytes()
    files["corrupt"].write_bytes(b"\xff" * 64 + whole[64:])
    return files, made


@pytest.fixture(scope="session")
def hub(published: tuple[dict[str, Path], Path]) -> Iterator[str]:
    Hub.files = {case: path.read_bytes() for case, path in published[0].items()}
    Hub.asked = []
    with running_server(Hub) as url:
        yield url


@pytest.fixture(scope="session")
def hub_home(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("hf_home"))


@pytest.fixture(scope="session")
def downloads(hub: str, hub_home: str) -> dict[str, Any]:
    return run_client(CLIENT, json.dumps(MODELS), HF_ENDPOINT=hub, HF_HOME=hub_home)


def check_refusal(found: dict[str, Any], model: str, endpoint: str) -> str:
    """The one message: the model, what was tried, and the ways out; it came soon."""
    assert found.get("type") == "BackboneUnavailable", found
    message = str(found["error"])
    assert "\n" not in message
    for part in (model, endpoint, f"timm/{model}"):
        assert part in message
    for way_out in ("HF_HUB_CACHE", "--weights FILE", "efficientnet_lite0"):
        assert way_out in message
    assert found["seconds"] < 30
    assert found["undisturbed"]
    return message


@pytest.mark.slow
class TestHub:
    @pytest.mark.parametrize("case", ["whole", "pickled"])
    def test_download_gives_exactly_the_published_weights(
        self, downloads: dict[str, Any], published: tuple[dict[str, Path], Path], case: str
    ) -> None:
        found = downloads[case]
        same = load_backbone(MODELS[case], published[0][case])
        assert (found["weights"], found["dim"]) == (same.weights, same.dim)
        assert found["undisturbed"]
        assert same.weights not in load_backbone(MODELS[case], "random").weights

    def test_what_was_asked_for(self, downloads: dict[str, Any]) -> None:
        asked = [line for line in Hub.asked if MODELS["whole"] in line or "/cdn/" in line]
        assert set(asked) == {
            f"HEAD /timm/{MODELS['whole']}/resolve/main/model.safetensors",
            "GET /cdn/whole",
        }
        assert asked.count("GET /cdn/whole") == 1

    @pytest.mark.parametrize(
        ("case", "reason"),
        [
            ("no repository", "404"),
            ("no file", "404"),
            ("down", "503"),
            ("ends early", "closed connection|incomplete"),
            ("short", "should be of size"),
            ("corrupt", "header"),
            ("lacks tensors", "Missing key"),
            ("evil", "nsupported global|eights.only"),
        ],
    )
    def test_failures(self, downloads: dict[str, Any], hub: str, case: str, reason: str) -> None:
        message = check_refusal(downloads[case], MODELS[case], hub)
        assert re.search(reason, message)

    def test_code_from_the_hub_is_not_run(
        self, downloads: dict[str, Any], published: tuple[dict[str, Path], Path]
    ) -> None:
        assert downloads["evil"]["type"] == "BackboneUnavailable"
        assert not published[1].exists()

    def test_nobody_answers(self, downloads: dict[str, Any], hub_home: str) -> None:
        nobody = unused_url()
        some = {"warm": MODELS["whole"], "cold": MODELS["down"]}
        found = run_client(CLIENT, json.dumps(some), HF_ENDPOINT=nobody, HF_HOME=hub_home)
        message = check_refusal(found["cold"], some["cold"], nobody)
        assert "refused" in message
        assert found["warm"]["weights"] == downloads["whole"]["weights"]
        assert found["warm"]["seconds"] < 30

    def test_offline(self, downloads: dict[str, Any], hub: str, hub_home: str) -> None:
        before = len(Hub.asked)
        some = {case: MODELS[case] for case in ("whole", "pickled", "no repository")}
        environment = {"HF_ENDPOINT": hub, "HF_HOME": hub_home, "HF_HUB_OFFLINE": "1"}
        found = run_client(CLIENT, json.dumps(some), **environment)
        for case in ("whole", "pickled"):
            assert found[case]["weights"] == downloads[case]["weights"]
        message = check_refusal(found["no repository"], MODELS["no repository"], hub)
        assert "offline" in message
        assert len(Hub.asked) == before
