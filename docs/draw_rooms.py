"""Draws the rooms of the package, floor by floor, and which of them imports from which."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_layout import FLOORS, MODULES, imports_of, room_of

plt.rcParams["svg.hashsalt"] = "rooms"  # the same imports give the same file
plt.rcParams["svg.fonttype"] = "none"  # names are text, which a test reads


def draw(path: str) -> None:
    """Write the picture."""
    floors = [[room for room in rooms if not room.startswith("__")] for rooms in FLOORS]
    floors = [rooms for rooms in floors if rooms]
    places = {
        room: ((column + 1) / (len(rooms) + 1), floor)
        for floor, rooms in enumerate(floors)
        for column, room in enumerate(rooms)
    }
    sizes = Counter(map(room_of, MODULES))
    below: dict[str, set[str]] = {room: set() for room in places}
    for module in MODULES:
        if room_of(module) in places:
            below[room_of(module)] |= {room_of(other) for other in imports_of(module)}
    edges = {
        (room, other)
        for room, others in below.items()
        for other in others - {room}
        # What an arrow by way of another room says already is left out.
        if not any(other in below[between] for between in others - {room, other})
    }
    figure, axes = plt.subplots(figsize=(10, 8), layout="constrained")
    for above, below in sorted(edges):
        arrow = {"arrowstyle": "->", "color": "0.75", "lw": 0.8, "shrinkA": 12, "shrinkB": 12}
        axes.annotate("", xy=places[below], xytext=places[above], arrowprops=arrow)
    for room, (x, y) in places.items():
        text = f"{room}\n{sizes[room]}" if sizes[room] > 1 else room
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "0.3"}
        axes.text(x, y, text, ha="center", va="center", fontsize=9, bbox=box)
    for low, high in pairwise(range(len(floors))):
        axes.axhline((low + high) / 2, color="0.92", lw=0.8, zorder=0)
    axes.set(xlim=(0, 1), ylim=(-0.5, len(floors) - 0.5))
    axes.set_yticks(range(len(floors)), [f"floor {number + 1}" for number in range(len(floors))])
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(sys.argv[1])
