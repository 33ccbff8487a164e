"""Downloads from a server on this machine: resumed, cut off, damaged, missing, refused; through a proxy and the Hub."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hub_server import serving

from flowleap.datasets import download as download_module
from flowleap.datasets import public_files as public
from flowleap.datasets.download import download, unpack
from flowleap.datasets.public_files import PUBLIC, HubFile, Public, WebFile
from flowleap.policy.core.errors import FlowleapError
from flowleap.scripts.cli import main as cli

BODY = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves one body under every path, with ranges; speaks as much of the Hub's language as a download needs."""

    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.server
        server.asked.append((self.command, self.path, self.headers.get("Range")))
        if server.status:
            self.send_error(server.status)
            return
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        given, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if given and condition in (None, server.etag):
            start = int(given.removeprefix("bytes=").split("-")[0])
        if start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("ETag", server.etag)
        self.send_header("X-Repo-Commit", "c0ffee")
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        if self.command == "GET":
            mine = not self.path.startswith("/api/")  # the Hub's client asks for more than the file
            cut = server.cuts.pop(0) if server.cuts and mine else len(server.body)
            self.wfile.write(server.body[start : start + cut])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status:
            self.send_error(self.server.status)
            return
        size = len(self.server.body)
        entry = {"type": "file", "path": "a/b.hdf5", "oid": "0", "size": size}
        entry["lfs"] = {"oid": self.server.published, "size": size, "pointerSize": 130}
        answer = json.dumps([entry]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """The server and what it is told to do.

    Attributes:
        cuts: bytes after which it hangs up, one an answer; later ones are whole.
        status: an error that it answers with instead.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.published = BODY, f'"{SHA256}"', SHA256
        self.cuts: list[int] = []
        self.status = 0
        self.asked: list[tuple[str, str, str | None]] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def ranges(self) -> list[str | None]:
        return [given for command, _, given in self.asked if command == "GET"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server()
    with serving(running, monkeypatch):
        yield running


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_file_arrives_with_its_origin(server: Server, tmp_path: Path) -> None:
    target, told = tmp_path / "new" / "x.bin", []
    download(WebFile(f"{server.address}/x", SHA256), target, lambda here, total: told.append((here, total)))
    assert target.read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))
    assert len(told) > 1
    assert names(tmp_path) == ["new/x.bin", "new/x.bin.source.json"]
    facts = json.loads((tmp_path / "new" / "x.bin.source.json").read_text())
    assert (facts["sha256"], facts["bytes"], facts["etag"]) == (SHA256, len(BODY), server.etag)
    assert facts["checked"].startswith("the SHA-256")
    download(WebFile(f"{server.address}/x"), tmp_path / "y")
    assert "no checksum is published" in (tmp_path / "y.source.json").read_text()


def test_a_cut_transfer_goes_on_within_a_call_and_between_calls(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 5000, 7]
    target = tmp_path / "x"
    with pytest.raises(FlowleapError, match=r"broke after 6000 of 3000000 bytes.*same command goes on"):
        download(WebFile(f"{server.address}/x", SHA256), target, waits=(0,))
    assert names(tmp_path) == [".x.part", ".x.part.tag"]
    download(WebFile(f"{server.address}/x", SHA256), target, waits=(0,))
    assert target.read_bytes() == BODY
    assert server.ranges() == [None, "bytes=1000-", "bytes=6000-", "bytes=6007-"]


def test_a_redirected_transfer_goes_on(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000]
    download(WebFile(f"{server.address}/moved/x", SHA256), tmp_path / "x", waits=(0,))
    assert (tmp_path / "x").read_bytes() == BODY
    assert server.ranges() == [None, None, "bytes=1000-", "bytes=1000-"]


def test_a_changed_file_is_fetched_from_its_start(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000]
    with pytest.raises(FlowleapError):
        download(WebFile(f"{server.address}/x"), tmp_path / "x", waits=())
    server.body, server.etag = BODY[::-1], '"other"'
    download(WebFile(f"{server.address}/x"), tmp_path / "x", waits=())
    assert (tmp_path / "x").read_bytes() == BODY[::-1]


def test_a_weak_tag_is_no_ground_to_resume(server: Server, tmp_path: Path) -> None:
    server.etag, server.cuts = 'W/"1"', [1000]
    download(WebFile(f"{server.address}/x"), tmp_path / "x", waits=(0,))
    assert (tmp_path / "x").read_bytes() == BODY
    server.cuts = [1000]
    download(WebFile(f"{server.address}/y", SHA256), tmp_path / "y", waits=(0,))
    assert server.ranges() == [None, None, None, "bytes=1000-"], "but a checksum is"


def test_a_whole_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".x.part").write_bytes(BODY)
    (tmp_path / ".x.part.tag").write_text(server.etag)
    download(WebFile(f"{server.address}/x", SHA256), tmp_path / "x", waits=())
    assert (tmp_path / "x").read_bytes() == BODY
    (tmp_path / ".y.part").write_bytes(BODY + b"more")
    (tmp_path / ".y.part.tag").write_text(server.etag)
    download(WebFile(f"{server.address}/y", SHA256), tmp_path / "y", waits=(0,))
    assert (tmp_path / "y").read_bytes() == BODY


def test_what_fails_leaves_nothing_under_the_name(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "x"
    with pytest.raises(
        FlowleapError, match=rf"has SHA-256 {SHA256}, expected 00; it|expected 00: it was damaged"
    ):
        download(WebFile(f"{server.address}/x", "00"), target)
    server.status = 404
    with pytest.raises(FlowleapError, match=r"answers 404 Not Found; the file may have moved"):
        download(WebFile(f"{server.address}/x"), target)
    assert len(server.asked) == 2
    server.status = 503
    with pytest.raises(FlowleapError, match=r"answers 503 .* same command"):
        download(WebFile(f"{server.address}/x"), target, waits=(0,))
    assert len(server.asked) == 4
    assert names(tmp_path) == []
    with Server() as closed:
        address = closed.address
    with pytest.raises(
        FlowleapError, match=r"cannot reach 127.0.0.1:\d+ \(Connection refused\).*HTTPS_PROXY"
    ):
        download(WebFile(f"{address}/x"), target, waits=())
    (tmp_path / "file").write_text("")
    with pytest.raises(FlowleapError, match="cannot write"):
        download(WebFile(f"{server.address}/x"), tmp_path / "file" / "x", waits=())


def test_a_proxy_is_asked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    download(WebFile("http://demonstrations.invalid/x", SHA256), tmp_path / "x")
    assert [path for _, path, _ in server.asked] == ["http://demonstrations.invalid/x"]


# Zip files


def zipped(entries: dict[str, bytes], mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, data)
    return buffer.getvalue()


def test_a_zip_becomes_a_folder(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"a/b.zarr/c": b"1", "a/d": b"2"}))
    unpack(archive, tmp_path / "out")
    assert names(tmp_path) == ["out/a/b.zarr/c", "out/a/d"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil"])
def test_a_zip_that_leads_out_is_not_unpacked(name: str, tmp_path: Path) -> None:
    archive = tmp_path / "in" / "a.zip"
    archive.parent.mkdir()
    archive.write_bytes(zipped({"good": b"", name: b"x"}))
    with pytest.raises(FlowleapError, match="no plain file inside it"):
        unpack(archive, tmp_path / "in" / "out")
    assert names(tmp_path) == ["in/a.zip"]


def test_links_damage_and_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({"link": b"/etc/passwd"}, stat.S_IFLNK | 0o777))
    with pytest.raises(FlowleapError, match="no plain file"):
        unpack(archive, tmp_path / "out")
    whole = zipped({"a": b"0123456789"})
    archive.write_bytes(whole.replace(b"0123456789", b"0123456780"))
    with pytest.raises(FlowleapError, match="no whole zip file"):
        unpack(archive, tmp_path / "out")
    archive.write_bytes(whole[:-30])
    with pytest.raises(FlowleapError, match="it was removed, download it again"):
        unpack(archive, tmp_path / "out")
    archive.write_bytes(whole)
    full = type(download_module.shutil.disk_usage("/"))(9, 9, 9)
    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: full)
    with pytest.raises(FlowleapError, match="which the disk does not have"):
        unpack(archive, tmp_path / "out")
    assert names(tmp_path) == ["a.zip"]


# The verb


def test_the_verb_lists_fetches_and_says_what_next(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.body = zipped({"pusht/p.zarr/zarr.json": b"{}"})
    file = WebFile(f"{server.address}/p.zip")
    monkeypatch.setitem(PUBLIC, "pusht", Public("Push-T", file, ".zip"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["download"]) == cli.main(["list", "what=downloads"]) == 0
    text = capsys.readouterr().out
    assert text.count("robomimic/lift_ph ") == 2
    for words in (["pusht"], ["name=pusht"]):
        assert cli.main(["download", *words]) == 0
        assert "flowleap inspect dataset=data/pusht/pusht/p.zarr" in capsys.readouterr().out
    assert len(server.asked) == 1
    assert names(tmp_path) == ["data/pusht.zip.source.json", "data/pusht/pusht/p.zarr/zarr.json"]
    assert cli.main(["download", "pusht", "can"]) == 2
    assert "takes one name at a time" in capsys.readouterr().err
    assert cli.main(["download", "robomimic/lift_hp"]) == 2
    assert "did you mean 'robomimic/lift_ph'?" in capsys.readouterr().err
    server.status = 404
    assert cli.main(["download", "pusht", "out=other"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert "404" in line


def test_every_public_file_has_an_address() -> None:
    for name, entry in PUBLIC.items():
        if isinstance(entry.file, WebFile):
            assert entry.file.url.startswith("https://")
            if name.endswith("_v141"):  # where robomimic 0.3 has them
                task, kind, _ = name.removeprefix("robomimic/").rsplit("_", 2)
                assert entry.file.url.endswith(f"/rt_benchmark/{task}/{kind}/low_dim_v141.hdf5")
        else:
            task, kind = name.removeprefix("robomimic/").rsplit("_", 1)
            assert entry.file.path == f"v1.5/{task}/{kind}/low_dim_v15.hdf5"
            assert len(entry.file.revision) == 40
        assert entry.suffix in (".zip", ".hdf5")
    assert public.PUBLIC["robomimic/square_mh"]
    for task in ("lift", "can", "square"):  # what the error for files of robosuite 1.5 names
        assert public.PUBLIC[f"robomimic/{task}_ph_v141"]


HUB = """
import sys
from pathlib import Path
from flowleap.datasets.download import download
from flowleap.datasets.public_files import HubFile
from flowleap.policy.core.spec import FlowleapError
try:
    download(HubFile("some/data", "c0ffee", "a/b.hdf5"), Path(sys.argv[1]), waits=eval(sys.argv[2]))
except FlowleapError as error:
    sys.exit(str(error))
"""


def from_hub(address: str, target: Path, waits: str = "(0,)") -> str:
    """Fetch a file from a Hub at `address` in a process of its own, which reads it at import; return the error."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {
        "HF_ENDPOINT": address,
        "HF_HOME": str(target.parent / "home"),
    }
    command = [sys.executable, "-c", HUB, str(target), waits]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode == 0) == target.exists(), result.stderr
    assert "Traceback" not in result.stderr
    return (result.stderr.strip().splitlines() or [""])[-1]


def test_files_of_the_hub_are_checked_and_resumed(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "x" / "lift.hdf5"
    server.published = "0" * 64
    assert "expected 0000" in from_hub(server.address, target)
    assert names(tmp_path / "x") == []
    server.published, server.asked, server.cuts = SHA256, [], [1_000_000] * 2
    from_hub(server.address, target, waits="()")
    assert names(tmp_path / "x") == [".lift.hdf5.part", ".lift.hdf5.part.tag"]
    from_hub(server.address, target)
    assert target.read_bytes() == BODY
    path = "/datasets/some/data/resolve/c0ffee/a/b.hdf5"
    asked = [given for _, place, given in server.asked if place == path]
    assert asked == [None, "bytes=1000000-", "bytes=2000000-"]
    assert names(tmp_path / "x") == ["lift.hdf5", "lift.hdf5.source.json"]
    facts = json.loads((target.parent / "lift.hdf5.source.json").read_text())
    assert facts["sha256"] == SHA256
    assert facts["url"].endswith(path)
    assert facts["checked"].startswith("the SHA-256")


def test_a_hub_that_cannot_be_reached_or_lacks_the_file_is_one_line(server: Server, tmp_path: Path) -> None:
    server.status = 404
    assert "cannot be fetched: Client error '404 Not Found'" in from_hub(server.address, tmp_path / "x")
    with Server() as closed:
        address = closed.address
    line = from_hub(address, tmp_path / "x")
    assert "cannot reach the Hugging Face Hub" in line
    assert "check the network and the proxy settings" in line
    assert isinstance(PUBLIC["robomimic/lift_ph"].file, HubFile)
