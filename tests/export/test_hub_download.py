"""`sppnet.from_pretrained("USER/NAME")`: what is downloaded from the Hub, and what is said if it cannot be."""

from __future__ import annotations

import hashlib
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub.constants
import pytest
import torch

from calling import Called, Caller
from sppnet.errors import UserError
from sppnet.export.from_pretrained import from_pretrained

COMMITS = {"main": "1" * 40, "old": "2" * 40}


class Hub(BaseHTTPRequestHandler):
    """Serves the folder `served` as the model `me/net` of the Hub, at two commits."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        name, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        commit = COMMITS.get(revision, revision)
        path = Path("served", file)
        if name != "me/net" or commit not in COMMITS.values() or not path.is_file():
            self.send_response(404)
            code = "RepoNotFound" if name != "me/net" else "EntryNotFound" if path.name == file else "RevisionNotFound"
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.asked.append(f"{revision}/{file}")
            self.wfile.write(content)

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Hub on this machine, and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + template)
    Hub.asked.clear()
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_name_on_the_hub_is_downloaded_once_and_checked(
    sppnet: Caller,
    trained: Called,
    hub: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert sppnet("export", f"checkpoint={trained.run}", "format=hub", "output=served").code == 0
    Path("served/pytorch_model.bin").write_bytes(b"never asked for")
    expected = from_pretrained(trained.run).network.state_dict()
    for revision in (None, "old"):
        state = from_pretrained("me/net", revision=revision).network.state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items())
    commit, old = COMMITS.values()
    assert Hub.asked == ["main/config.json", f"{commit}/model.safetensors"]  # the other commit has the same files
    assert (tmp_path / f"cache/models--me--net/snapshots/{old}/model.safetensors").exists()
    for name, options, problem in (
        ("me/none", {}, "me/none: there is no such file or directory, and no such model"),
        ("me/net", {"revision": "none"}, "no such model of sppnet can be downloaded"),
    ):
        with pytest.raises(UserError, match=problem) as refusal:
            from_pretrained(name, **options)
        assert "\n" not in str(refusal.value)
    Path("served").rename("away")
    with pytest.raises(UserError, match="no such model of sppnet can be downloaded"):  # the cache does not hide it
        from_pretrained("me/net")
    Path("away").rename("served")
    capsys.readouterr()
    from_pretrained("me/net")
    assert "in the cache" not in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # without a network
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    from_pretrained("me/net")
    assert "the copy in the cache may be older than the model there" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such model of sppnet can be downloaded"):
        from_pretrained("me/other")
    [blob] = {path.resolve() for path in (tmp_path / "cache").rglob("model.safetensors")}
    content = bytearray(blob.read_bytes())
    content[-50] ^= 4
    blob.write_bytes(content)
    with pytest.raises(UserError, match="is damaged; remove it to download it again"):
        from_pretrained("me/net")
    shutil.copytree("served", "me/net")  # a local path wins
    from_pretrained("me/net")
    with pytest.raises(UserError, match="revision=old is for models on the Hub"):
        from_pretrained("me/net", revision="old")


def test_a_model_of_another_library_is_one_line(hub: str, sppnet: Caller) -> None:
    Path("served").mkdir()
    Path("served/config.json").write_text('{"model_type": "vit"}')
    Path("served/pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="source=me/net is not a model of sppnet"):
        from_pretrained("me/net")
    assert "pytorch_model.bin" not in str(Hub.asked)


def test_without_the_package_of_the_hub_one_line_names_the_extra(
    sppnet: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"huggingface_hub is missing: run uv sync --extra export"):
        from_pretrained("me/net")
