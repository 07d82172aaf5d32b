"""The scenes of the world in NLVR's manner: three grey boxes with towers of blocks or scattered
shapes, distributed as NLVR's own are.

Shapes:  S scenes   3 boxes of a scene   8 items of a box at most
"""

import random

import torch
from torch import Tensor

COLOURS = {"black": (0, 0, 0), "yellow": (255, 255, 0), "blue": (0, 153, 255)}
COLOUR, SHAPE, SIZE = list(COLOURS), ["circle", "square", "triangle"], [10, 20, 30]
BOX, GREY, ITEMS = 100, 211, 8
MOST = 7  # scattered items of a box
# The blocks of a tower, from the base up; they stand one pixel apart
TOWER_X, TOWER_Y = 40, (80, 59, 38, 17)


def sprites() -> Tensor:
    """uint8 [colour, shape, size, 3, 30, 30]: every item at its upper left, smooth at its edge, on
    the grey of a box."""
    fine = 8  # samples along a pixel
    out = torch.full((len(COLOUR), len(SHAPE), len(SIZE), 3, 30, 30), GREY, dtype=torch.uint8)
    for k, size in enumerate(SIZE):
        position = (torch.arange(size * fine) + 0.5) / fine  # in pixels
        y, x, half = position[:, None], position[None, :], size / 2
        circle = (x - half) ** 2 + (y - half) ** 2 <= half**2
        inks = [circle, (x >= 0) & (y >= 0), (x - half).abs() <= y / 2]
        for s, ink in enumerate(inks):
            share = ink.view(size, fine, size, fine).float().mean((1, 3))
            for c, colour in enumerate(COLOURS.values()):
                pixels = share * torch.tensor(colour)[:, None, None] + (1 - share) * GREY
                out[c, s, k, :, :size, :size] = pixels.round().to(torch.uint8)
    return out


SPRITES = sprites()


def tower(r: random.Random) -> list[tuple]:
    """One to four blocks, from the base up: (colour, shape, size, x, y) each."""
    return stack([(r.randrange(3), 1, 1) for _ in range(r.randint(1, len(TOWER_Y)))], r)


def stack(items: list[tuple], r: random.Random) -> list[tuple]:
    """Blocks (colour, shape, size), from the base up, with their places."""
    return [(*item, TOWER_X, y) for item, y in zip(items, TOWER_Y)]


def scatter(r: random.Random) -> list[tuple]:
    """One to seven items that do not touch each other."""
    while True:
        n = r.randint(1, MOST)
        placed = strew([tuple(r.randrange(3) for _ in range(3)) for _ in range(n)], r)
        if placed:
            return placed


def strew(items: list[tuple], r: random.Random) -> list[tuple] | None:
    """Items (colour, shape, size) with random places where they do not touch each other; None if
    none is found. What would stick out stands at the right wall, or on the bottom."""
    placed = []
    for c, s, k in items:
        for _ in range(50):
            x, y = (min(r.randrange(BOX), BOX - SIZE[k]) for _ in range(2))
            if not any(touch((k, x, y), (j, u, v)) for _, _, j, u, v in placed):
                placed.append((c, s, k, x, y))
                break
        else:
            return None
    return placed


def twin(scene: list[list[tuple]], r: random.Random, towers: bool) -> list[list[tuple]]:
    """A scene of the same items, in other boxes and places. So were half of NLVR's pictures made:
    people wrote what is true of one and false of its twin."""
    items = [item[:3] for box in scene for item in box]
    put, most = (stack, len(TOWER_Y)) if towers else (strew, MOST)
    for _ in range(50):
        r.shuffle(items)
        first, second = sorted(r.sample(range(1, len(items)), 2)) if len(items) > 2 else (1, 2)
        parts = items[:first], items[first:second], items[second:]
        if all(1 <= len(part) <= most for part in parts):
            boxes = [put(part, r) for part in parts]
            if all(boxes):
                return boxes
    return scene


def touch(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    """Whether two items (size, x, y) touch or overlap."""
    (k, x, y), (j, u, v) = a, b
    apart = x > u + SIZE[j] or u > x + SIZE[k] or y > v + SIZE[j] or v > y + SIZE[k]
    return not apart


class Scenes:
    """S scenes as lists, boxes[s][b] = [(colour, shape, size, x, y), ...], and the same as integer
    tensors [S, 3, 8], one for each property, with `there` True where there is an item. Items of a
    tower are listed from the base up."""

    def __init__(self, boxes: list[list[list[tuple]]]):
        self.boxes, nothing = boxes, (-1,) * 5
        padded = [[box + [nothing] * (ITEMS - len(box)) for box in scene] for scene in boxes]
        self.colour, self.shape, self.size, self.x, self.y = torch.tensor(padded).unbind(-1)
        self.there = self.colour >= 0
        pixels = torch.tensor(SIZE)[self.size]
        # bool [S, 3, 8]: which items touch a wall of their box
        self.left, self.right = self.there & (self.x == 0), self.there & (self.x + pixels == BOX)
        self.top, self.bottom = self.there & (self.y == 0), self.there & (self.y + pixels == BOX)
        # NLVR's people are not strict about corners
        near_wall = [(low <= 2) | (low + pixels >= BOX - 2) for low in (self.x, self.y)]
        self.corner = self.there & near_wall[0] & near_wall[1]

    def render(self) -> Tensor:
        """uint8 [S, 3, 3, 100, 100]: the three boxes of every scene."""
        out = torch.full((len(self.boxes), 3, 3, BOX, BOX), GREY, dtype=torch.uint8)
        for s, scene in enumerate(self.boxes):
            for b, box in enumerate(scene):
                for c, shape, k, x, y in box:
                    n = SIZE[k]
                    out[s, b, :, y : y + n, x : x + n] = SPRITES[c, shape, k, :, :n, :n]
        return out


def caption(scene: list[list[tuple]], towers: bool) -> str:
    """Box by box; towers from the base up, scattered items from the left to the right."""
    if towers:
        return " / ".join(", ".join(COLOUR[item[0]] for item in box) for box in scene)
    boxes = [sorted(box, key=lambda item: item[3:]) for box in scene]
    return " / ".join(", ".join(map(describe, box)) for box in boxes)


def describe(item: tuple) -> str:
    """'big yellow circle left': an item and the walls it touches."""
    c, s, k, x, y = item
    far = BOX - SIZE[k]
    walls = {"left": x == 0, "right": x == far, "top": y == 0, "bottom": y == far}
    touched = [wall for wall, touches in walls.items() if touches]
    return " ".join([("small", "medium", "big")[k], COLOUR[c], SHAPE[s], *touched])
