"""A bar chart as SVG: for each link and image, how long each subject takes until it is ready, and what of that is the pull."""

from html import escape

WIDTH, NAMES, VALUES, BAR, GAP, TITLE = 860, 90, 130, 13, 10, 34
# A pull's part of a bar is darker than the start's. Told apart in print and by the colour-blind, too.
COLOURS = [("#8a8a8a", "#c4c4c4"), ("#1b6ca8", "#8fc1e3"), ("#0b7a53", "#7fd1ae"), ("#b5651d", "#e8b787"), ("#7b3f98", "#caa3dc"),
           ("#a83232", "#e59a9a"), ("#4d5a1e", "#b4c27a")]
FONT = 'font-family="sans-serif" font-size="12"'


def svg(links: dict) -> str:
    """`links`: speed, image, subject, then `pull` and `ready` in seconds."""
    subjects = list(next(iter(next(iter(links.values())).values())))
    parts, y = [], legend_height(subjects)
    parts += legend(subjects)
    for speed, images in links.items():
        y += TITLE
        parts.append(f'<text x="4" y="{y - 12}" {FONT} font-weight="bold">{escape(speed)}: seconds from nothing to ready</text>')
        longest = max(value["ready"] for values in images.values() for value in values.values() if value["ready"] == value["ready"])
        scale = (WIDTH - NAMES - VALUES) / longest
        for name, values in images.items():
            middle = y + len(values) * BAR / 2 + 4
            parts.append(f'<text x="{NAMES - 8}" y="{middle:.0f}" text-anchor="end" {FONT}>{escape(name)}</text>')
            for row, subject in enumerate(values):
                colours = COLOURS[subjects.index(subject) % len(COLOURS)]
                parts += bar(y + row * BAR, values[subject], scale, colours, next(iter(values.values())))
            y += len(values) * BAR + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 4}" viewBox="0 0 {WIDTH} {y + 4}">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y + 4}" fill="#ffffff"/>', *parts, "</svg>", ""])


def bar(y: int, value: dict, scale: float, colours: tuple, base: dict) -> list:
    if value["ready"] != value["ready"]:
        return [f'<text x="{NAMES}" y="{y + BAR - 3}" {FONT} fill="#a00000">failed</text>']
    pull, whole = value["pull"] * scale, value["ready"] * scale
    told = f"{value['ready']:.2f}" + (f" ({base['ready'] / value['ready']:.1f}x)" if value is not base else "")
    return [f'<rect x="{NAMES}" y="{y}" width="{whole:.1f}" height="{BAR - 2}" fill="{colours[1]}"/>',
            f'<rect x="{NAMES}" y="{y}" width="{pull:.1f}" height="{BAR - 2}" fill="{colours[0]}"/>',
            f'<text x="{NAMES + whole + 5:.1f}" y="{y + BAR - 3}" {FONT}>{told}</text>']


def legend_height(subjects: list) -> int:
    return 12 + 16 * len(subjects)


def legend(subjects: list) -> list:
    parts = []
    for number, subject in enumerate(subjects):
        dark, light = COLOURS[number % len(COLOURS)]
        y = 8 + 16 * number
        parts += [f'<rect x="{NAMES}" y="{y}" width="14" height="11" fill="{dark}"/>',
                  f'<rect x="{NAMES + 14}" y="{y}" width="14" height="11" fill="{light}"/>',
                  f'<text x="{NAMES + 36}" y="{y + 10}" {FONT}>{escape(subject)}: pull, then create and start</text>']
    return parts
