"""Datasets of the Hugging Face Hub: `hf://OWNER/NAME` is fetched, once, into its cache."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

from flowleap.policy.core.errors import FlowleapError

_URL = re.compile(r"hf:/+(?:datasets/)?([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?/?")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def local_path(path: str | os.PathLike[str]) -> Path:
    """The path of a dataset on this machine; `hf://OWNER/NAME`, or `...@REVISION`, is fetched first.

    Raises:
        FlowleapError: the Hub does not hand it out, or nothing is there and the path looks like a name of the Hub.
    """
    text = str(path)
    if text.startswith("hf:/"):
        match = _URL.fullmatch(text)
        if match is None:
            raise FlowleapError(
                f"'{text}' is no dataset of the Hub: write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"
            )
        return _fetched(match[1], match[2])
    place = Path(path).expanduser()
    if _NAME.fullmatch(text) and not place.suffix and not place.parent.exists():
        raise FlowleapError(
            f"'{text}' is no file or folder here. For the dataset of the Hugging Face Hub: dataset=hf://{text}, "
            f"or `{_command(text)}` and then dataset=data/{place.name}"
        )
    return place


def _command(name: str, revision: str | None = None) -> str:
    at = f" --revision {revision}" if revision else ""
    return f"hf download {name} --repo-type dataset{at} --local-dir data/{name.partition('/')[2]}"


@cache
def _fetched(name: str, revision: str | None) -> Path:
    """Where the files of a dataset lie, fetched as far as they are not there yet."""
    import huggingface_hub
    import huggingface_hub.errors

    try:
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset", revision=revision))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = f"where there is a network, `{_command(name, revision)}`, then that path"
        raise FlowleapError(f"hf://{name} cannot be fetched ({reason}); {remedy}") from error
