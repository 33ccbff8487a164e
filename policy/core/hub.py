"""The Hugging Face Hub: `hf://OWNER/NAME@REVISION` is fetched into its cache, and its errors become ours.

    Address.parse("hf://me/door", "model")      Address(name="me/door", revision=None, kind="model")
    policy_folder("hf://me/door@v1")            the folder in the cache that holds policy.json or export.json

Whatever takes the path of a policy takes such an address (`checkpoint.resolve`, `ExportedPolicy.load`). What the Hub
hands out is read like any folder of a stranger, and files that no policy consists of are not fetched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowleap.policy.core.errors import FlowleapError

Kind = Literal["model", "dataset"]

CHECKPOINT_FILES = ("policy.json", "model.safetensors")
LEROBOT_FILES = ("config.json", "policy_preprocessor.json", "policy_postprocessor.json")
EXPORT_FILES = ("export.json", "policy.onnx", *LEROBOT_FILES)
POLICY_FILES = (*CHECKPOINT_FILES, *EXPORT_FILES)
"""What a policy consists of: manifest and model first, then what it may lack. Nothing else is pushed (but the card)."""

_NAME = r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+"
_URL = r"hf:/+(?:{kind}s/)?({name}?)(?:@([A-Za-z0-9_./-]+))?/?"
_TRANSPORTS = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}  # below the Hub's client
_TOKEN = "`hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True)
class Address:
    """A repository of the Hub, at a revision (a branch, a tag or a commit; `None` is its main branch)."""

    name: str
    revision: str | None = None
    kind: Kind = "model"

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")

    @classmethod
    def parse(cls, path: str | os.PathLike[str], kind: Kind) -> Address | None:
        """The address that `path` is, or None if it is an ordinary path.

        Raises:
            FlowleapError: it begins like an address and is none.
        """
        text = str(path)
        if not re.match(r"hf:[/\\]", text):
            return None
        # A `Path` made of an address has lost a slash, and on Windows turned the others.
        match = re.fullmatch(_URL.format(kind=kind, name=_NAME), text.replace("\\", "/"))
        if match is None:
            what = "policy" if kind == "model" else kind
            raise FlowleapError(
                f"'{text}' is no {what} of the Hub: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
            )
        return cls(match[1], match[2], kind)

    @classmethod
    def cached_at(cls, path: str | os.PathLike[str]) -> Address | None:
        """The repository and commit that a folder in the Hub's cache is a copy of; None for other folders."""
        match = re.search(
            r"(?:^|[/\\])(model|dataset)s--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\](\w+)[/\\]?$", str(path)
        )
        if match is None:
            return None
        return cls(f"{match[2]}/{match[3]}", match[4], "model" if match[1] == "model" else "dataset")

    @property
    def download(self) -> str:
        """The command that fetches it by hand, into a folder."""
        kind = " --repo-type dataset" if self.kind == "dataset" else ""
        at = f" --revision {self.revision}" if self.revision else ""
        return f"hf download {self.name}{kind}{at} --local-dir {self.local_dir}"

    @property
    def local_dir(self) -> str:
        """Where that command puts it."""
        return f"{'data' if self.kind == 'dataset' else 'policies'}/{self.name.partition('/')[2]}"


def is_name(text: str) -> bool:
    """Whether a text is OWNER/NAME."""
    return re.fullmatch(_NAME, text) is not None


def fetched(address: Address, files: Sequence[str] | None = None) -> Path:
    """The folder in the Hub's cache with (those `files` of) a repository, fetched as far as it is not there yet.

    Without a network, and with HF_HUB_OFFLINE, it is what was fetched before.

    Raises:
        FlowleapError: the Hub does not hand it out, cannot be reached, or broke off; the message says what to do.
    """
    import huggingface_hub

    only = None if files is None else list(files)
    with explained(address):
        return Path(
            huggingface_hub.snapshot_download(
                address.name, repo_type=address.kind, revision=address.revision, allow_patterns=only
            )
        )


def policy_folder(path: str | os.PathLike[str]) -> Path:
    """The folder on this machine that `path` means: itself, or where the files of an `hf://` address were put.

    Raises:
        FlowleapError: see `fetched`; or the repository holds no policy.
    """
    address = Address.parse(path, "model")
    if address is None:
        return Path(path)
    folder = fetched(address, POLICY_FILES)
    for manifest, model in (CHECKPOINT_FILES[:2], EXPORT_FILES[:2]):
        if (folder / manifest).is_file() and not (folder / model).is_file():
            raise FlowleapError(
                f"{address}: {model} is missing, in the repository or of what was fetched before; where there is a "
                f"network, the same command again, or `{address.download}` to look"
            )
    if not any((folder / manifest).is_file() for manifest in (CHECKPOINT_FILES[0], EXPORT_FILES[0])):
        raise FlowleapError(
            f"{address} holds no policy of flowleap: it has neither {CHECKPOINT_FILES[0]} nor {EXPORT_FILES[0]}; "
            "`flowleap push` writes one"
        )
    return folder


def hint(path: Path) -> str:
    """What to add to `PATH does not exist` where it looks like a name of the Hub; else nothing."""
    text = path.as_posix()
    meant = is_name(text) and not path.parent.exists()
    return f"; for a policy of the Hugging Face Hub: hf://{text}" if meant else ""


@contextmanager
def explained(address: Address, writing: bool = False) -> Iterator[None]:
    """Turn what the Hub's client raises into one line of ours; what is none of its mishaps is a bug and passes."""
    try:
        yield
    except FlowleapError:
        raise
    except Exception as error:
        told = _explanation(error, address, writing)
        if told is None:
            raise
        reason, remedy = told
        what = f"hf://{address.name} cannot be {'written' if writing else 'fetched'}"
        raise FlowleapError(f"{what} ({reason}); {remedy}") from error


def _explanation(error: BaseException, address: Address, writing: bool) -> tuple[str, str] | None:
    """Reason and remedy of a mishap; None for what is none."""
    from huggingface_hub import errors as hub

    by_hand = f"where there is a network, `{address.download}`, then that path"
    again = "check the network and the proxy settings (HTTPS_PROXY); the same command goes on"
    if isinstance(error, hub.LocalEntryNotFoundError):
        cause = error.__cause__ or error.__context__
        if isinstance(cause, hub.HfHubHTTPError):
            return _explanation(cause, address, writing)
        here = "only a part of it is" if type(error).__name__.startswith("Incomplete") else "it is not"
        offline = _offline() or isinstance(cause, hub.OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
        return f"{why}, and {here} in the cache", by_hand
    if isinstance(error, hub.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "unset it where there is a network"
    if isinstance(error, hub.LocalTokenNotFoundError):
        return "there is no token", _TOKEN
    if isinstance(error, hub.HfHubHTTPError):
        return _refusal(error, address, writing)
    if any(kind.__module__.partition(".")[0] in _TRANSPORTS for kind in type(error).__mro__):
        name = type(error).__name__
        if "Connect" in name or "Proxy" in name:
            return f"the Hub cannot be reached: {_first_line(error)}", again
        return f"the transfer broke off: {_first_line(error)}", again
    if isinstance(error, RuntimeError) or type(error).__name__.startswith(
        "Xet"
    ):  # of hf_xet, which has no errors
        return f"the transfer broke off: {_first_line(error)}", again
    if isinstance(error, OSError) and re.match("(?i)consistency check", str(error)):
        return "the transfer broke off: what arrived is not whole", again
    if isinstance(error, OSError):
        return _first_line(error), by_hand if not writing else "the same command again"
    if isinstance(error, ValueError):
        return _first_line(error), f"look at https://huggingface.co/{address.name}"
    return None


def _refusal(error: Exception, address: Address, writing: bool) -> tuple[str, str]:
    """Reason and remedy where the Hub answered, with an error."""
    from huggingface_hub import errors as hub

    status = getattr(getattr(error, "response", None), "status_code", None)
    page = f"https://huggingface.co/{'datasets/' if address.kind == 'dataset' else ''}{address.name}"
    if isinstance(error, hub.GatedRepoError):
        return "access is restricted", f"ask for it on {page}, then {_TOKEN}"
    if isinstance(error, hub.RevisionNotFoundError):
        return f"it has no revision '{address.revision or 'main'}'", f"{page} lists its branches and commits"
    if isinstance(error, hub.RepositoryNotFoundError):
        private = f"check the name; a private one needs a token: {_TOKEN}"
        return (
            f"there is no such {'model' if address.kind == 'model' else 'dataset'}, or it is private",
            private,
        )
    if isinstance(error, hub.DisabledRepoError):
        return "the Hub has disabled it", f"see {page}"
    if status == 401:
        return "the token is not valid", _TOKEN
    if status == 403 and writing:
        owner = address.name.partition("/")[0]
        return f"the token may not write to '{owner}'", f"make one with write access, then {_TOKEN}"
    if status == 403:
        return "the token may not read it", f"ask for access on {page}, then {_TOKEN}"
    if status == 429 or (status is not None and status >= 500):
        return f"the Hub answers {status}", "wait a little; the same command goes on"
    return _first_line(error), f"see {page}"


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
