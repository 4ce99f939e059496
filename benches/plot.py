"""Draws lines in logarithmic panels as SVG, without libraries."""

import math
from html import escape

WIDTH, HEIGHT, MARGIN_LEFT, MARGIN = 380, 250, 56, 34
COLOURS = ("#1f77b4", "#2ca02c", "#d62728")


class Panel:
    """Lines, by name, of points (x, y)."""

    def __init__(self, x_label, y_label, lines):
        self.x_label, self.y_label, self.lines = x_label, y_label, lines

    def ticks(self, axis):
        """Returns the powers of ten around all values of an axis, and at least two."""
        values = [max(point[axis], 1e-3) for line in self.lines.values() for point in line]
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return list(range(low, max(high, low + 1) + 1))

    def draw(self, left, top):
        x_ticks, y_ticks = self.ticks(0), self.ticks(1)
        x_of = lambda x: left + MARGIN_LEFT + (math.log10(max(x, 1e-3)) - x_ticks[0]) / (
            x_ticks[-1] - x_ticks[0]) * (WIDTH - MARGIN_LEFT - MARGIN)
        y_of = lambda y: top + HEIGHT - MARGIN - (math.log10(max(y, 1e-3)) - y_ticks[0]) / (
            y_ticks[-1] - y_ticks[0]) * (HEIGHT - 2 * MARGIN)
        parts = []
        for tick in x_ticks:
            x = x_of(10 ** tick)
            parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{top + MARGIN}" y2="{top + HEIGHT - MARGIN}"/>')
            parts.append(text(x, top + HEIGHT - MARGIN + 14, f"{10 ** tick:,.12g}", "middle"))
        for tick in y_ticks:
            y = y_of(10 ** tick)
            parts.append(f'<line x1="{left + MARGIN_LEFT}" x2="{left + WIDTH - MARGIN}" y1="{y:.0f}" y2="{y:.0f}"/>')
            parts.append(text(left + MARGIN_LEFT - 6, y + 4, f"{10 ** tick:,.12g}", "end"))
        parts.append(text(left + WIDTH - MARGIN, top + HEIGHT - 6, self.x_label, "end"))
        parts.append(text(left + MARGIN_LEFT, top + MARGIN - 8, self.y_label, "start"))
        for colour, line in zip(COLOURS, self.lines.values()):
            points = [(x_of(x), y_of(y)) for x, y in line]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" stroke="{colour}"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        return "\n".join(parts)


def text(x, y, words, anchor, colour="#555"):
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def figure(panels):
    """Returns the SVG of panels, two in a row, with one legend for all."""
    rows = (len(panels) + 1) // 2
    height = rows * HEIGHT + 30
    legend = [text(20 + 240 * at, 20, name, "start", colour)
              for at, (colour, name) in enumerate(zip(COLOURS, panels[0].lines))]
    drawn = [panel.draw(at % 2 * WIDTH, 30 + at // 2 * HEIGHT) for at, panel in enumerate(panels)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {height}" font-family="sans-serif" '
        'font-size="11">',
        "<style>line { stroke: #ddd } polyline { fill: none; stroke-width: 2 }</style>",
        f'<rect width="{2 * WIDTH}" height="{height}" fill="white"/>', *legend, *drawn, "</svg>", ""])
