#!/usr/bin/env python3
"""Draws the results of `cargo bench --bench kernels` as one SVG: a panel per bench group, a line per implementation.

Usage:

    scripts/plot.py [target/criterion] [docs/kernels.svg]

Reads criterion's medians of groups whose benches are named IMPLEMENTATION/LOG2-OF-THE-SIZE. Vertical axis: nanoseconds
per element (logarithmic); horizontal axis: log2 of the size. Needs only Python 3.
"""

import json
import math
import pathlib
import sys
from collections import defaultdict
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT, COLUMNS = 400, 270, 62, 34, 40, 14, 3
COLOURS = {"arkworks": "#7f7f7f", "portable": "#1f77b4", "avx2": "#2ca02c", "avx512ifma": "#d62728"}


def medians(folder):
    """{group: {implementation: {log2 size: ns an element}}}"""
    groups = defaultdict(lambda: defaultdict(dict))
    for path in folder.rglob("new/benchmark.json"):
        bench = json.loads(path.read_text())
        if bench["function_id"] not in COLOURS or not (bench["value_str"] or "").isdigit():
            continue
        size = int(bench["value_str"])
        median = json.loads((path.parent / "estimates.json").read_text())["median"]["point_estimate"]
        groups[bench["group_id"]][bench["function_id"]][size] = median / 2**size
    return groups


def panel(name, lines):
    """A group as SVG, in a box of WIDTH × HEIGHT."""
    sizes = sorted({size for line in lines.values() for size in line})
    values = [v for line in lines.values() for v in line.values()]
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = low - 0.05, high + 0.05

    def x(size):
        span = max(sizes[-1] - sizes[0], 1)
        return LEFT + (WIDTH - LEFT - RIGHT) * (size - sizes[0]) / span

    def y(value):
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(value)) / (high - low)

    out = [f'<text x="{LEFT}" y="18" font-weight="bold">{escape(name)}</text>']
    for size in sizes:
        out.append(f'<text x="{x(size):.0f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{size}</text>')
    for step in range(math.floor(low), math.ceil(high) + 1):
        for digit in (1, 2, 5):
            tick = digit * 10.0**step
            if low <= math.log10(tick) <= high:
                out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
                out.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    out.append(f'<text x="{(LEFT + WIDTH) // 2}" y="{HEIGHT - 8}" text-anchor="middle">log2 of the size</text>')
    middle = (TOP + HEIGHT - BOTTOM) // 2
    out.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">ns an element</text>')
    for k, name in enumerate(sorted(lines, key=list(COLOURS).index)):
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in sorted(lines[name].items()))
        out.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
        for s, v in lines[name].items():
            out.append(f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.5" fill="{COLOURS[name]}"/>')
        out.append(f'<text x="{WIDTH - RIGHT}" y="{TOP + 12 + 14 * k}" text-anchor="end" fill="{COLOURS[name]}">{name}</text>')
    return "\n".join(out)


def main():
    source = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "target/criterion")
    target = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else "docs/kernels.svg")
    groups = medians(source)
    if not groups:
        sys.exit(f"{source}: no bench of the kernels; run `cargo bench --bench kernels` first")
    rows = -(-len(groups) // COLUMNS)
    body = []
    for k, name in enumerate(sorted(groups)):
        at = (k % COLUMNS * WIDTH, k // COLUMNS * HEIGHT)
        body.append(f'<g transform="translate({at[0]} {at[1]})">\n{panel(name, groups[name])}\n</g>')
    width, height = COLUMNS * WIDTH, rows * HEIGHT
    target.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )
    print(f"{target}: {len(groups)} panels")


if __name__ == "__main__":
    main()
