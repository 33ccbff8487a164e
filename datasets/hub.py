"""Datasets of the Hugging Face Hub: `hf://OWNER/NAME` is fetched, once, into its cache."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from flowleap.policy.core import hub
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.hub import Address


def local_path(path: str | os.PathLike[str]) -> Path:
    """The path of a dataset on this machine; `hf://OWNER/NAME`, or `...@REVISION`, is fetched first.

    Raises:
        FlowleapError: the Hub does not hand it out, or nothing is there and the path looks like a name of the Hub.
    """
    address = Address.parse(path, "dataset")
    if address is not None:
        return _fetched(address)
    text, place = str(path), Path(path).expanduser()
    if hub.is_name(text) and not place.suffix and not place.parent.exists():
        raise FlowleapError(
            f"'{text}' is no file or folder here. For the dataset of the Hugging Face Hub: dataset=hf://{text}, "
            f"or `{Address(text, kind='dataset').download}` and then dataset=data/{place.name}"
        )
    return place


@cache
def _fetched(address: Address) -> Path:
    """Where the files of a dataset lie. A verb opens its dataset more than once: all see one revision."""
    return hub.fetched(address)
