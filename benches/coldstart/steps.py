"""What fills a layer: steps that are applied, one after the other, to the root directory that lies below it so far.

Their `repr` is all that decides what they do, so that it also tells whether a layer must be built anew.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from corpuslib import debian

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of files that are written: some day before all packages'.
TIME = 1_690_000_000


class Several:
    """A step that is made from words."""

    def __init__(self, *words: str):
        self.words = list(words)

    def __repr__(self):
        return f"{type(self).__name__}{self.words}"


class Apt(Several):
    """Debian packages with what they depend on."""

    def apply(self, root: Path):
        debian.apt(root, self.words)


class Pip(Several):
    """Python packages, compiled as pip leaves them."""

    def apply(self, root: Path):
        debian.pip(root, self.words)


@dataclass(frozen=True)
class Files:
    """Text files by path."""

    texts: dict

    def apply(self, root: Path):
        for path, text in self.texts.items():
            place = root / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
            os.utime(place, (TIME, TIME))


@dataclass(frozen=True)
class Script:
    """Shell commands inside."""

    text: str

    def apply(self, root: Path):
        print("+", self.text, file=sys.stderr)
        debian.run("chroot", root, "sh", "-ec", self.text, env={"PATH": PATH, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"})
