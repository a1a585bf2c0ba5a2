"""What the measurements say: figures with targets, a Markdown table, a chart; docs/BENCHMARKS.md's part about cold starts."""

import json
import math
import statistics
from pathlib import Path

import chart
from common import Figures
from place import ROOT

DOCUMENT, CHART = ROOT / "docs/BENCHMARKS.md", ROOT / "docs/coldstart.svg"
BEGIN, END = "<!-- cold starts: written by make coldstart -->", "<!-- end of cold starts -->"
BASE = "overlayfs"
SOONER, SOONER_WITH_HINTS, WARM, CREATE = 3, 5, 1.05, 30
TARGETS = {"lazo": SOONER, "lazo-hints": SOONER_WITH_HINTS}


class Link:
    """All that was measured on one link."""

    def __init__(self, images: dict):
        self.images = {name: {subject: [one for one in rounds if "error" not in one] for subject, rounds in subjects.items()}
                       for name, subjects in images.items()}
        self.failures = {(name, subject): next(one["error"] for one in rounds if "error" in one)
                         for name, subjects in images.items() for subject, rounds in subjects.items()
                         if any("error" in one for one in rounds)}

    def median(self, name: str, subject: str, key: str) -> float:
        values = [one[key] for one in self.images[name].get(subject, [])]
        if key == "warm":
            values = [second for seconds in values for second in seconds]
        return statistics.median(values) if values else math.nan

    def ratio(self, name: str, subject: str, key="ready") -> float:
        """How many times sooner than by a full pull."""
        return self.median(name, BASE, key) / self.median(name, subject, key)

    def mean(self, subject: str, key="ready") -> float:
        """The geometric mean of the images' ratios."""
        return statistics.geometric_mean([self.ratio(name, subject, key) for name in self.images])


def show(path: Path, write: bool):
    results = json.loads(path.read_text())
    links = {speed: Link(images) for speed, images in results["links"].items()}
    figures = promises(links, results["subjects"])
    text = document(results, links, figures)
    print(text)
    if write:
        CHART.write_text(chart.svg({speed: table(link) for speed, link in links.items()}))
        put(text)


def promises(links: dict, subjects: dict) -> Figures:
    figures = Figures()
    for speed, link in links.items():
        measured = set.intersection(*(set(by) for by in link.images.values()))
        for subject in [name for name in subjects if name.startswith("lazo") and {BASE, name} <= measured]:
            ratios = {name: link.ratio(name, subject) for name in link.images}
            least = min(ratios, key=ratios.get)
            promised = subject in TARGETS
            figures.add(f"{speed}: ready, full pull / {subject}, the least of the images", ratios[least], "x",
                        least=1 if promised else None, note=least)
            figures.add(f"{speed}: ready, full pull / {subject}, geometric mean", link.mean(subject), "x", least=TARGETS.get(subject))
            warm = {name: 1 / link.ratio(name, subject, "warm") for name in link.images}
            most = max(warm, key=warm.get)
            figures.add(f"{speed}: second start, {subject} / overlayfs, the most of the images", warm[most], "",
                        most=WARM if promised else None, note=f"{most}; geometric mean {1 / link.mean(subject, 'warm'):.3f}")
            create = {name: link.median(name, subject, "create") for name in link.images}
            most = max(create, key=create.get)
            figures.add(f"{speed}: create, {subject}, the most of the images", create[most] * 1e3, "ms",
                        most=CREATE if promised else None, note=f"{most}; overlayfs {link.median(most, BASE, 'create') * 1e3:.1f} ms")
    return figures


def table(link: Link) -> dict:
    """Image, then subject: the parts of the time until it is ready, in seconds."""
    return {name: {subject: {key: link.median(name, subject, key) for key in ("pull", "create", "run", "ready")}
                   for subject in subjects} for name, subjects in link.images.items()}


def document(results: dict, links: dict, figures: Figures) -> str:
    parts = [results["machine"] + f"; medians of {results['rounds']} rounds.", "", *subjects_of(results), "", figures.table(), "",
             "![seconds until each image is ready](coldstart.svg)"]
    for speed, link in links.items():
        parts += ["", f"**{speed}**", "", *rows(link)]
    return "\n".join(parts)


def subjects_of(results: dict) -> list:
    return [f"- **{name}**: {about}" for name, about in results["subjects"].items()]


HEAD = "| image | subject | ready, s | sooner | pull, s | create, ms | run, s | second start, s | MB | requests | node's CPU, s " \
       "| daemons' CPU, s | daemons' RSS (peak), MB |"


def rows(link: Link) -> list:
    lines = [HEAD, "|---|---" + "|--:" * (HEAD.count("|") - 3) + "|"]
    for name, subjects in link.images.items():
        for subject, rounds in subjects.items():
            if not rounds:
                lines.append(f"| {name} | {subject} | failed: {link.failures[name, subject].splitlines()[0]} |" + " |" * 10)
                continue
            value = {key: link.median(name, subject, key) for key in rounds[0]}
            lines.append(
                f"| {name} | {subject} | **{value['ready']:.2f}** | {link.ratio(name, subject):.1f}x | {value['pull']:.2f} "
                f"| {value['create'] * 1e3:.1f} | {value['run']:.2f} | {value['warm']:.3f} | {value['bytes'] / 1e6:.1f} "
                f"| {value['requests']:.0f} | {value['cpu']:.2f} | {value['daemon_cpu']:.2f} "
                f"| {value['daemon_rss'] / 1e6:.0f} ({value['daemon_peak'] / 1e6:.0f}) |")
    return lines


def put(text: str):
    """Between the markers, where they are."""
    document = DOCUMENT.read_text()
    if BEGIN not in document:
        document += f"\n{BEGIN}\n{END}\n"
    head, rest = document.split(BEGIN, 1)
    _, tail = rest.split(END, 1)
    DOCUMENT.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")
