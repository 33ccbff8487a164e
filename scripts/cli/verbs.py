"""The verbs of the command line, and the script behind each; what it does and an example stand in its docstring."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent


class Verb:
    """A verb, told from its script, which is not imported for it.

    Args:
        name: the verb.
        script: the module below `flowleap.scripts` whose `main` runs it.
        word: the option whose value may stand alone: `flowleap download pusht`.
    """

    def __init__(self, name: str, script: str, word: str = "") -> None:
        self.name, self.script, self.word = name, script, word

    @cached_property
    def doc(self) -> str:
        """The docstring of the script."""
        file = SCRIPTS / f"{self.script.replace('.', '/')}.py"
        return file.read_text(encoding="utf-8").split('"""', 2)[1].strip()

    @property
    def summary(self) -> str:
        """The first line, without its full stop."""
        return self.doc.partition("\n")[0].rstrip(".")

    @property
    def example(self) -> str:
        """The first command line in the docstring, without the remark beside it."""
        found = re.search(rf"^ *(flowleap {self.name}\b.*?)(?:   .*)?$", self.doc, re.MULTILINE)
        return found[1] if found else f"flowleap {self.name}"


_SCRIPTS = {
    "train": "train",
    "eval": "evaluate",
    "export": "export",
    "collect": "collect",
    "convert": "convert",
    "inspect": "inspect_dataset",
    "download": "download",
    "view": "view",
    "replay": "replay",
    "list": "list_choices",
    "doctor": "doctor",
    "benchmark": "studies.benchmark",
    "gradients": "studies.gradients",
    "toy": "studies.toy",
    "speed": "studies.speed",
    "demo": "demo",
}
VERBS = {name: Verb(name, script, "name" if name == "download" else "") for name, script in _SCRIPTS.items()}
