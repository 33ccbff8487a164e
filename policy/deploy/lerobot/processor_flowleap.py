"""Pre- and post-processors of the policy type `flowleap`: names, batch axis, device. The policy normalises itself."""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from flowleap.lerobot.configuration_flowleap import FlowleapConfig


def make_flowleap_pre_post_processors(
    config: FlowleapConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[Any, Any]:
    """Build both pipelines; `dataset_stats` are not needed, as `config` asks for no normalisation.

    lerobot overrides steps by name (device, renaming, statistics), so the default ones have to be there.
    """
    return make_default_pre_post_processors(config)
