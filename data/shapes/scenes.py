"""The scenes of the built-in world: layouts and their pictures.

Shapes:  S scenes   CELLS = 16 cells in reading order   KINDS = 24 kinds (colour x shape)
"""

import torch
from torch import Tensor

from data.families import EMPTY

COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 160, 60),
    "blue": (50, 90, 220),
    "yellow": (235, 200, 40),
    "purple": (150, 60, 180),
    "cyan": (70, 200, 210),
}
COLOUR, SHAPE = list(COLOURS), ["circle", "square", "triangle", "diamond"]
GRID, CELL = 4, 16  # cells along a side, pixels along a cell
NAMES = [f"{colour} {shape}" for colour in COLOUR for shape in SHAPE]  # of the kinds
KINDS = len(NAMES)
CELLS = GRID * GRID

# How many objects of each kind a scene holds. Every scene has a kind three times, one twice and one
# once, so questions with the answers 0, 1, 2, 3 exist everywhere; the last two are the only object
# of their colour and of their shape.
MULTIPLICITY = torch.tensor(
    [[3, 2, 1, 0, 1, 1], [3, 2, 1, 1, 1, 1], [3, 2, 2, 1, 1, 1], [3, 3, 2, 1, 1, 1]]
)


def sprites() -> Tensor:
    """bool [shape, size, CELL, CELL]: each shape in three sizes, centred."""
    offset = torch.arange(CELL) - (CELL - 1) / 2  # from the middle of the cell
    y, x = offset[:, None], offset[None, :]
    inks = {name: [] for name in SHAPE}
    for r in (4.0, 4.75, 5.5):
        inks["circle"].append(x * x + y * y <= (r + 0.3) ** 2)
        inks["square"].append((x.abs() <= r - 0.5) & (y.abs() <= r - 0.5))
        inks["triangle"].append((y <= r) & (y >= -r) & (x.abs() <= (y + r) / 2 + 0.5))
        inks["diamond"].append(x.abs() + y.abs() <= r + 0.5)
    return torch.stack([torch.stack(sizes) for sizes in inks.values()])


SPRITES = sprites()
PALETTE = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)


def _permutation(S: int, n: int, g: torch.Generator) -> Tensor:
    return torch.rand(S, n, generator=g).argsort(1)


def layouts(S: int, g: torch.Generator) -> Tensor:
    """Scenes: int64 [S, CELLS], colour * len(SHAPE) + shape of what is in each cell, or EMPTY."""
    colour, shape = _permutation(S, len(COLOUR), g), _permutation(S, len(SHAPE), g)
    # Kinds 0..3: four distinct ones of three colours x three shapes; kind 4: a fourth colour;
    # kind 5: the fourth shape
    main = _permutation(S, 9, g)[:, :4]
    c = torch.cat([main // 3, torch.full((S, 1), 3), torch.randint(3, (S, 1), generator=g)], 1)
    s = torch.cat([main % 3, torch.randint(3, (S, 1), generator=g), torch.full((S, 1), 3)], 1)
    kind = colour.gather(1, c) * len(SHAPE) + shape.gather(1, s)  # [S, 6]
    repeats = MULTIPLICITY[torch.randint(len(MULTIPLICITY), (S,), generator=g)]  # [S, 6]
    slot = torch.arange(CELLS)[None, :, None]
    owner = (slot >= repeats.cumsum(1)[:, None]).sum(-1)  # [S, CELLS]: 6 = nobody
    objects = torch.cat([kind, torch.full((S, 1), EMPTY)], 1).gather(1, owner)
    return objects.gather(1, _permutation(S, CELLS, g))


def render(layout: Tensor, g: torch.Generator) -> Tensor:
    """Pictures uint8 [S, 3, 64, 64]; size, place within the cell, brightness and background vary
    and mean nothing."""
    S, side = len(layout), GRID * CELL
    size = torch.randint(3, (S, CELLS), generator=g)
    shift = torch.randint(-2, 3, (S, CELLS, 2), generator=g)
    pixel = torch.arange(CELL)
    y = (pixel - shift[..., :1]).clamp(0, CELL - 1)  # [S, CELLS, CELL]
    x = (pixel - shift[..., 1:]).clamp(0, CELL - 1)
    shape, colour = layout.clamp(min=0) % len(SHAPE), layout.clamp(min=0) // len(SHAPE)
    sprite = shape[..., None, None], size[..., None, None]
    ink = SPRITES[(*sprite, y[..., :, None], x[..., None, :])]  # [S, CELLS, CELL, CELL]
    ink = (ink & (layout >= 0)[..., None, None])[:, :, None]
    brightness = 0.85 + 0.15 * torch.rand(S, CELLS, 1, generator=g)
    background = torch.randint(20, 60, (S, 1, 1, 1, 1), generator=g)
    pixels = torch.where(ink, (PALETTE[colour] * brightness)[..., None, None], background)
    noise = torch.randint(-8, 9, (S, 1, 1, side, side), generator=g)
    pixels = pixels + noise.view(S, CELLS, 1, CELL, CELL)  # [S, CELLS, 3, CELL, CELL]
    pixels = pixels.view(S, GRID, GRID, 3, CELL, CELL).permute(0, 3, 1, 4, 2, 5)
    return pixels.reshape(S, 3, side, side).clamp(0, 255).to(torch.uint8)
