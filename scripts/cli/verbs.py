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
        words: the option that is a list of all words that name no option: `flowleap report runs/a runs/b`.
    """

    def __init__(self, name: str, script: str, word: str = "", words: str = "") -> None:
        self.name, self.script, self.word, self.words = name, script, word, words

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


_ORDER = (
    "train eval compare robustness report export serve push collect convert inspect download view replay list doctor "
    "benchmark gradients delay toy speed lerobot demo"
)
_ELSEWHERE = {
    "eval": "evaluate",
    "inspect": "inspect_dataset",
    "list": "list_choices",
    "lerobot": "studies.lerobot_check",
    **{study: f"studies.{study}" for study in ("benchmark", "gradients", "delay", "toy", "speed")},
}
_BARE = {
    "download": {"word": "name"},
    "report": {"words": "runs"},
    "compare": {"words": "policies"},
}
VERBS = {verb: Verb(verb, _ELSEWHERE.get(verb, verb), **_BARE.get(verb, {})) for verb in _ORDER.split()}
