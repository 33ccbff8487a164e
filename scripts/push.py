"""Push a policy to the Hugging Face Hub, with a card that says what was measured and how to load it.

    flowleap push checkpoint=RUN_DIR to=OWNER/NAME                     the last checkpoint of a run
    flowleap push checkpoint=RUN_DIR/export_nfe1 to=OWNER/NAME-onnx    an export
    flowleap push checkpoint=RUN_DIR to=OWNER/NAME private=true revision=v1 license=mit
    flowleap push checkpoint=RUN_DIR to=OWNER/NAME dry_run=true        print files and card, ask nobody
    flowleap eval checkpoint=hf://OWNER/NAME                           and this is how it is used, anywhere

Log in once with `hf auth login`, or set HF_TOKEN to a token with write access. The repository is made if it is not
there. Pushed are model.safetensors and policy.json, or policy.onnx and export.json, and the card, README.md; never the
optimiser's state, logs, videos or data. policy.json goes without the folder in which the dataset lay. The card lists
what `flowleap eval` measured and wrote beside the policy: evaluate first. The line that is printed at the end names the
commit: `hf://OWNER/NAME@COMMIT` is the same policy for ever.
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.deploy.hub import CARD, Pushed, card_of, prepare, push
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import say


def main(cfg: DictConfig) -> Pushed | None:
    """Push `cfg.checkpoint` to `cfg.to`, and return what was pushed; None of a dry run."""
    for name in ("to", "revision", "license", "message"):
        if cfg[name] is not None and not isinstance(cfg[name], str):
            raise FlowleapError(f"{name}={cfg[name]} must be a text; quote it: {name}=\"'{cfg[name]}'\"")
    if cfg.private is not None and not isinstance(cfg.private, bool):
        raise FlowleapError(f"private={cfg.private} must be true, false or null")
    if cfg.dry_run:
        prepared = prepare(cfg.checkpoint)
        text = card_of(prepared, cfg.to, cfg.revision, cfg.license)
        for name in prepared.files:
            say(f"{(prepared.folder / name).stat().st_size / 1e6:10.3f} MB  {prepared.folder / name}")
        say(f"{len(text.encode()) / 1e6:10.3f} MB  {CARD}\n\n{text}")
        return None
    pushed = push(
        cfg.checkpoint,
        cfg.to,
        revision=cfg.revision,
        private=cfg.private,
        license=cfg.license,
        message=cfg.message,
    )
    say(f"{pushed.url}: {', '.join(pushed.files)}; evaluations in the card: {pushed.measured}")
    say(f"flowleap eval checkpoint={pushed.address}")
    return pushed


if __name__ == "__main__":
    sys.exit(run_verb("push"))
