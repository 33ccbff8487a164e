"""Public files: resumed where they stopped, checked, and under their name only when they are whole.

Bytes come through urllib: pooch cannot resume, and the Hub's client (2.4) throws away what has arrived when it is
interrupted; it is asked what a file should be. Both follow the proxies of the environment (`HTTPS_PROXY`, `NO_PROXY`).
What has arrived of a file stays beside it under a hidden name until the rest has come. Beside a finished one,
`NAME.source.json` says where it came from and what was checked.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from flowleap.datasets.public_files import HubFile, WebFile
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import atomic

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and the bytes of the whole file, None if unknown."""

_BLOCK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_AGAIN = (408, 429, 500, 502, 503, 504)  # answers that may be others a moment later


class _Broken(Exception):
    """The connection failed in a way that may pass."""


def download(
    file: HubFile | WebFile, target: Path, progress: Progress | None = None, waits: tuple[float, ...] = (1, 4)
) -> Path:
    """Bring a file to `target`.

    Args:
        file: where it is.
        target: the final name; nothing may be there.
        progress: told how far it is.
        waits: seconds before each further attempt after a broken connection.

    Raises:
        FlowleapError: no connection, no such file, a wrong checksum, no space. What has arrived stays for the next
            time, unless it was wrong.
    """
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        web = file if isinstance(file, WebFile) else _on_the_hub(file)
        for wait in (*waits, None):
            try:
                headers = _transfer(web, part, progress)
                break
            except _Broken as error:
                if wait is None:
                    more = "the same command goes on where this one stopped"
                    raise FlowleapError(f"{error}; {more}") from error
                time.sleep(wait)
        with part.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if web.sha256 not in (None, sha256):
            _forget(part)
            reason = "it was damaged on its way, or is another file now; nothing was kept"
            raise FlowleapError(f"{web.url} has SHA-256 {sha256}, expected {web.sha256}: {reason}")
        published = "the SHA-256 that its publisher names"
        facts = {
            "url": web.url,
            "bytes": part.stat().st_size,
            "sha256": sha256,
            "etag": headers.get("ETag"),
            "last_modified": headers.get("Last-Modified"),
            "checked": published if web.sha256 else "the size only: no checksum is published",
        }
        with atomic(target, part):
            _tag(part).unlink(missing_ok=True)
        about = target.with_name(f"{target.name}.source.json")
        about.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise FlowleapError(f"cannot write '{target}': {error.strerror or error}") from error
    return target


def _transfer(file: WebFile, part: Path, progress: Progress | None) -> dict[str, str]:
    """Make one attempt to complete `part`; return the headers that describe the file."""
    url, host = file.url, urlsplit(file.url).netloc
    here = part.stat().st_size if part.exists() else 0
    known = _tag(part).read_text().strip() if _tag(part).is_file() else ""
    request = urllib.request.Request(url, headers={"User-Agent": "flowleap"})
    if here and (file.sha256 or known):
        request.add_header("Range", f"bytes={here}-")
        if not file.sha256:  # with a checksum, the rest of another version would not pass
            request.add_header("If-Range", known)
    try:
        # An opener of its own, as the shared one keeps the proxies that it met first.
        with urllib.request.build_opener().open(request, timeout=_TIMEOUT) as answer:
            headers = dict(answer.headers)
            resumed = answer.status == 206 and headers.get("Content-Range", "").startswith(f"bytes {here}-")
            here = here if resumed else 0
            length = headers.get("Content-Length", "")
            total = here + int(length) if length.isdigit() else None
            tag = headers.get("ETag", "")
            strong = tag and not tag.startswith("W/")
            _tag(part).write_text(tag if strong else headers.get("Last-Modified", ""))
            with part.open("ab" if resumed else "wb") as out:
                while block := answer.read(_BLOCK):
                    out.write(block)
                    here += len(block)
                    if progress is not None:
                        progress(here, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and here:  # nothing comes after what is here
            if error.headers.get("Content-Range") == f"bytes */{here}":
                return dict(error.headers)
            _forget(part)
            raise _Broken(f"{url} does not fit what had arrived of it") from error
        if error.code in _AGAIN:
            raise _Broken(f"{url} answers {error.code} {error.reason}") from error
        raise FlowleapError(f"{url} answers {error.code} {error.reason}; the file may have moved") from error
    except urllib.error.URLError as error:
        raise _Broken(_unreachable(host, error.reason)) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Broken(f"the connection to {host} broke after {here} bytes ({error})") from error
    if total is not None and here < total:
        raise _Broken(f"the connection to {host} broke after {here} of {total} bytes")
    return headers


def _unreachable(host: str, reason: object) -> str:
    reason = getattr(reason, "strerror", None) or reason
    return f"cannot reach {host} ({reason}): check the network and the proxy settings (HTTPS_PROXY)"


def _tag(part: Path) -> Path:
    """Where the strong ETag or the date of what has arrived is kept, for `If-Range`."""
    return part.with_name(f"{part.name}.tag")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _on_the_hub(file: HubFile) -> WebFile:
    """Ask the Hub for the address and the SHA-256 of a file."""
    import huggingface_hub

    where = f"{file.repository}/{file.path} of the Hugging Face Hub"
    place: dict[str, Any] = {"repo_type": "dataset", "revision": file.revision}
    try:
        # Public files need no login, so none is sent.
        entries = huggingface_hub.HfApi(token=False).get_paths_info(file.repository, [file.path], **place)
    except Exception as error:  # each transport below the Hub's client has its own exceptions
        first = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, huggingface_hub.errors.HfHubHTTPError):
            raise FlowleapError(f"{where} cannot be fetched: {first}") from error
        raise FlowleapError(_unreachable("the Hugging Face Hub", first)) from error
    if len(entries) != 1:
        raise FlowleapError(f"{where} does not exist at revision {file.revision}")
    url, lfs = (
        huggingface_hub.hf_hub_url(file.repository, file.path, **place),
        getattr(entries[0], "lfs", None),
    )
    return WebFile(url, None if lfs is None else lfs.sha256)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip into a new folder, which appears when it is complete; the zip is removed then.

    Raises:
        FlowleapError: the zip is damaged, leads out of the folder, holds links, or does not fit on the disk.
    """
    try:
        with zipfile.ZipFile(archive) as file, atomic(folder) as temporary:
            members = file.infolist()
            for member in members:
                _require_inside(archive, member)
            size = sum(member.file_size for member in members)
            if size > shutil.disk_usage(archive.parent).free:
                raise FlowleapError(
                    f"'{archive}' unpacks to {size / 1e9:.1f} GB, which the disk does not have"
                )
            for member in members:
                file.extract(member, temporary)  # compares each file's CRC-32
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        archive.unlink(missing_ok=True)
        remedy = "it was removed, download it again"
        raise FlowleapError(f"'{archive}' is no whole zip file ({error}); {remedy}") from error
    except OSError as error:
        raise FlowleapError(f"cannot unpack into '{folder}': {error.strerror or error}") from error
    archive.unlink()
    return folder


def _require_inside(archive: Path, member: zipfile.ZipInfo) -> None:
    """Raise for a name that leads out of the folder, and for anything but a file or a folder."""
    name = member.filename
    path = PurePosixPath(name.replace("\\", "/"))
    kind = stat.S_IFMT(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in name or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise FlowleapError(
            f"'{archive}' holds '{name}', which is no plain file inside it: it was not unpacked"
        )
