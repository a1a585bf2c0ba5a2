"""What is measured: ways to get an image onto a node, each described by a TOML file.

Words in braces are filled in: `{lazo}` (the program), `{ctr}`, `{containerd}` (its socket), `{namespace}`, `{host}` (the registry), `{source}`
(the reference of the image as it was built), `{image}` (of the converted one), `{layout}` (the image as it was built, an OCI layout directory),
`{hints}` (a file: what a start reads, a path a line), `{run}`, `{state}` and `{files}` (directories that are empty before each start).

    about = "what it is, one line"
    snapshotter = "its name in containerd"
    socket = "{run}/its.sock"       # unless it is a part of containerd
    suffix = "-its"                 # of converted images' tags; without it, images are taken as they were built
    tls = true                      # it talks HTTPS alone; its daemons and commands find the certificate by SSL_CERT_FILE
    tools = ["program", ...]        # without which it cannot be measured
    convert = [[command], ...]      # once an image, not timed; a containerd with overlayfs runs
    pull = [command]                # timed
    [[daemons]]                     # started in this order, before containerd
    command = ["program", ...]
    ready = "{run}/its.sock"        # appears when it has started
    environment = { NAME = "value" }
    [files]                         # written to {files} before the daemons start
    "config.toml" = "text"
"""

import shutil
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from place import HERE, LAZO


@dataclass(frozen=True)
class Subject:
    name: str
    about: str
    snapshotter: str
    pull: list
    socket: str = ""
    suffix: str = ""
    tls: bool = False
    tools: list = field(default_factory=list)
    convert: list = field(default_factory=list)
    daemons: list = field(default_factory=list)
    files: dict = field(default_factory=dict)

    def missing(self) -> list:
        """Of the programs that it needs."""
        return [tool for tool in (text.replace("{lazo}", str(LAZO)) for text in self.tools) if not shutil.which(tool)]

    def tag(self) -> str:
        return f"v1{self.suffix}"


def load(path: Path) -> Subject:
    return Subject(name=path.stem, **tomllib.loads(path.read_text()))


def find(name: str) -> Subject:
    """By the name of a file in subjects/ or peers/, or by a path."""
    for path in (HERE / "subjects" / f"{name}.toml", HERE / "peers" / f"{name}.toml", Path(name)):
        if path.is_file():
            return load(path)
    raise SystemExit(f"no subject {name}: there is {', '.join(sorted(path.stem for path in HERE.glob('*/*.toml')))}")
