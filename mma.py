"""Modality-Mutual Attention (MMA, arXiv 2503.02597): the mask, its neighbours, and the check that keeps them honest.

    python mma.py               draw every mask in the terminal, with what it opens and whether it leaks labels
    python mma.py --png FILE    the same as one picture

In a decoder-only multimodal LLM the picture comes before the question. Under a causal mask the image tokens can therefore
never learn what was asked. MMA opens one rectangle of the mask - image rows may read the question's columns - and changes
nothing else: no parameters, no new positions, no extra cost.

Shapes:  B rows of a batch   T tokens of a row   i, j query (row) and key (column) position, 0 <= i, j < T
"""

import argparse
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor


class Role(IntEnum):
    """What a token is. The roles of a row decide its mask and its labels; both are built while the tokens are built."""
    PAD = 0       # fills a row up to the length of its batch
    TEXT = 1      # anything not below: begin-of-sequence, system text, user messages that bring no image
    IMAGE = 2     # one token of a picture
    QUESTION = 3  # the user text of the turn an image arrived in, up to and including the token that opens the answer
    ANSWER = 4    # what the model has to produce, end-of-sequence included: the supervised tokens


# --------------------------------------------------------------------------------------------------------------------
# The idea. Each kind of mask is one elementwise rule: given the roles of query i and key j, may i read j although j comes
# later? The dense mask, the picture and the leak check derive from these lines, and a FlexAttention mask_mod can. `cca` opens
# nothing: it gives image tokens other positions, and "later" is judged by those.

def _is_image(r): return r == Role.IMAGE
def _is_prompt(r): return (r == Role.IMAGE) | (r == Role.QUESTION)
def _may_be_opened(r): return (r != Role.ANSWER) & (r != Role.PAD)

OPENS = {
    "causal":  lambda q, k: _is_image(q) & False,
    "mma":     lambda q, k: _is_image(q) & (k == Role.QUESTION),
    "prefix":  lambda q, k: _is_prompt(q) & _is_prompt(k),
    "v2v":     lambda q, k: _is_image(q) & _is_image(k),
    "f":       lambda q, k: _is_image(q) & _is_prompt(k),
    "mutual":  lambda q, k: (_is_image(q) != _is_image(k)) & _may_be_opened(q) & _may_be_opened(k),
    "leaky":   lambda q, k: _is_image(q) & ~_is_image(k),
}
OPENS["v2t"] = OPENS["mma"]  # an alias: FutureMask's v2t, limited to the question, is the same set of pairs
OPENS["cca"], OPENS["mma+cca"] = OPENS["causal"], OPENS["mma"]
CONCENTRIC = {"cca", "mma+cca"}  # kinds whose image tokens are numbered by rings, from the outside in

ABOUT = {
    "causal": "opens nothing: every token reads the past only",
    "mma":    "image rows read the question's columns (arXiv 2503.02597)",
    "prefix": "image and question read each other freely (PaliGemma)",
    "v2v":    "image rows read all image columns (Gemma-3-like; FutureMask M^v2v)",
    "f":      "image rows read image and question columns (FutureMask M^f = v2v + v2t)",
    "mutual": "image and text read each other freely, answers excepted (the paper's general form; = mma where the picture comes first)",
    "leaky":  "image rows read all later text of their turn, the answer too: a lesson, see `leaks`",
    "v2t":    "another name for mma (FutureMask M^v2t, limited to the question)",
    "cca":    "image tokens read their own ring and those around it, and are numbered by ring (arXiv 2410.15926)",
    "mma+cca": "cca's rings, and image rows read the question's columns",
}


def may_attend(kind, i, j, role_i, role_j, turn_i, turn_j, document_i, document_j):
    """True where the query at position i may read the key at position j; elementwise over broadcastable integer tensors. The
    order of the rules matters: causal OR opened, then AND same document, AND key not a pad. What is opened stays within one
    turn: that is free of leaks, and it is what a KV cache computes anyway (an image is encoded before later turns exist).
    """
    opened = OPENS[kind](role_i, role_j) & (turn_i == turn_j)
    itself = i == j  # a pad reads itself, so that no row of the softmax is empty
    return ((j <= i) | opened) & (document_i == document_j) & ((role_j != Role.PAD) | itself)


# --------------------------------------------------------------------------------------------------------------------

def _check(kind, **tensors):
    if not isinstance(kind, str) or kind not in OPENS:
        raise ValueError(f"unknown mask kind {kind!r}; allowed: {', '.join(OPENS)}")
    shape = None
    for name, t in tensors.items():
        if t is None and name != "role":
            continue
        if not isinstance(t, Tensor) or t.dtype == torch.bool or t.is_floating_point() or t.is_complex() or t.dim() != 2:
            got = f"{t.dtype} of shape {list(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"{name} must be an integer tensor of shape [B, T], got {got}")
        shape = shape or t.shape
        if t.shape != shape:
            raise ValueError(f"{name} must have role's shape {list(shape)}, got {list(t.shape)}")


def rings(grid: tuple[int, int], device=None) -> Tensor:
    """int64 [H * W] in reading order: the ring of each image token, 0 = the outermost (CCA, arXiv 2410.15926)."""
    H, W = grid
    r, c = torch.arange(H, device=device)[:, None], torch.arange(W, device=device)[None, :]
    return torch.minimum(torch.minimum(r, H - 1 - r), torch.minimum(c, W - 1 - c)).flatten()


def refuse(wrong: Tensor, message) -> None:
    """ValueError(message()) if any of wrong, bool, is true. On a GPU the GPU itself checks, so that the host need not wait for it; its
    error says less."""
    if wrong.device.type in ("cuda", "meta"):
        torch._assert_async(~wrong.any(), "a batch does not fit the model; on a CPU the error says why")
    elif bool(wrong.any()):
        raise ValueError(message())


def positions(kind: str, role: Tensor, document: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
    """Position of each token, int64 [B, T] ([1, T] where all rows are alike): what RoPE rotates by and the mask compares.

    Tokens are counted 0, 1, 2, ... and the count restarts at each document, whose tokens stand together. Kinds in CONCENTRIC
    count a picture of grid = (H, W) tokens by rings instead: its first position + ring, and the text after it goes on at first
    position + number of rings. Raises ValueError if such a kind has no grid, or one that does not fit the image tokens.
    """
    _check(kind, role=role, document=document)
    B, T = role.shape
    if kind not in CONCENTRIC:
        ring, advance = 0, role.new_ones(1, T)
    else:
        here = role == Role.IMAGE
        n = 0 if grid is None else grid[0] * grid[1]
        refuse(here.sum(1) % n != 0 if n else torch.ones_like(here), lambda: f"the mask {kind!r} needs grid=(H, W), the image tokens of a "
               f"picture; got {grid} and image tokens, row by row: {here.sum(1).tolist()}")
        ring_of = rings(grid, role.device)
        nth = (here.cumsum(1) - 1) % len(ring_of)  # which token of its picture
        ring = ring_of[nth] * here
        advance = torch.where(here, (nth == len(ring_of) - 1) * (ring_of.max() + 1), 1)  # a picture takes as many as it has rings
    start = advance.cumsum(1) - advance
    if document is not None:
        first = F.pad(document[:, 1:] != document[:, :-1], (1, 0))
        start = start - (start * first).cummax(1).values
    return start + ring


def attention_mask(kind: str, role: Tensor, turn: Tensor | None = None, document: Tensor | None = None,
                   grid: tuple[int, int] | None = None, rows: Tensor | None = None) -> Tensor:
    """The dense mask of `kind` for scaled_dot_product_attention.

    role, turn, document: integer tensors [B, T]. `role` holds `Role` values; `turn` counts the user messages of a dialogue
    (default: all tokens are of one turn); `document` tells packed documents apart (default: one document); grid = (H, W), the
    image tokens of a picture, is needed by the kinds in CONCENTRIC. rows: int64 [B, K], the queries wanted (default: all T).
    Returns a bool tensor [B, 1, T or K, T], True = may attend. Raises ValueError on an unknown kind, a wrong dtype or shape.
    """
    _check(kind, role=role, turn=turn, document=document)
    turn = torch.zeros_like(role) if turn is None else turn
    document = torch.zeros_like(role) if document is None else document
    at = positions(kind, role, document, grid)
    queries = [t if rows is None else t.expand_as(role).gather(1, rows) for t in (at, role, turn, document)]
    pairs = [(q[:, :, None], t[:, None, :]) for q, t in zip(queries, (at, role, turn, document))]
    return may_attend(kind, *(t for pair in pairs for t in pair))[:, None]


def supervised(role: Tensor, document: Tensor | None = None) -> Tensor:
    """bool [B, T]: the tokens the loss is taken on. An answer token t is predicted from row t-1, so it needs a predecessor
    in its own document."""
    has_predecessor = torch.zeros_like(role, dtype=torch.bool)
    has_predecessor[:, 1:] = True if document is None else document[:, 1:] == document[:, :-1]
    return (role == Role.ANSWER) & has_predecessor


def predicting(role: Tensor, document: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which rows predict a supervised token: `read`, int64 [B, K], their columns, filled up with others where a row has fewer than the
    most; and `kept`, int64 [M], which of read.flatten() are meant. Token read + 1 is what such a row predicts."""
    target = supervised(role, document)[:, 1:]
    read = target.int().argsort(dim=1, descending=True, stable=True)[:, :max(1, int(target.sum(1).max()))]
    return read, target.gather(1, read).flatten().nonzero()[:, 0]


def leaks(mask: Tensor, role: Tensor, document: Tensor | None = None) -> Tensor:
    """Can a label be read instead of predicted? Over many layers information flows along the transitive closure of the mask.

    mask: bool [B, 1, T, T] as `attention_mask` returns it; role, document: integer [B, T].
    Returns bool [B, T]: True at every supervised position t whose predicting row t-1 reaches any column >= t through any
    number of layers. Raises ValueError on a wrong dtype or shape.
    """
    _check("causal", role=role, document=document)
    B, T = role.shape
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (B, 1, T, T):
        raise ValueError(f"mask must be a bool tensor [B, 1, T, T] = {[B, 1, T, T]}, got "
                         + (f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__))
    reach = mask[:, 0] | torch.eye(T, dtype=torch.bool, device=mask.device)  # the residual stream: a token keeps itself
    hops = 1
    while hops < T:  # squaring doubles the number of layers covered
        reach = (reach.float() @ reach.float()) > 0
        hops *= 2
    ahead = reach[:, :-1].triu(1).any(-1)  # [B, T-1]: row t-1 reaches some column >= t
    return supervised(role, document) & torch.cat([ahead.new_zeros(B, min(1, T)), ahead], 1)


# --------------------------------------------------------------------------------------------------------------------
# Pictures of the masks

LETTER = {Role.PAD: "-", Role.TEXT: "t", Role.IMAGE: "V", Role.QUESTION: "Q", Role.ANSWER: "A"}
EXAMPLE = "tVVVVVVVVVQQAAVVVVVVVVVQAttA-"  # a picture and its question, another picture with another, a turn without a picture, a pad
EXAMPLE_TURN = "01111111111111222222222223330"
EXAMPLE_GRID = (3, 3)


def example() -> tuple[Tensor, Tensor]:
    """The row that is drawn: role and turn, int64 [1, T]."""
    roles = {letter: role for role, letter in LETTER.items()}
    return torch.tensor([[roles[c] for c in EXAMPLE]]), torch.tensor([[int(c) for c in EXAMPLE_TURN]])


def verdict(kind: str) -> str:
    """One line: whether `kind` leaks labels on the example, with turns told apart and without."""
    role, turn = example()
    with_turns = leaks(attention_mask(kind, role, turn, grid=EXAMPLE_GRID), role).any()
    without = leaks(attention_mask(kind, role, grid=EXAMPLE_GRID), role).any()
    if with_turns:
        return "LEAKS labels"
    return "leaks no label" + (", if `turn` tells the turns apart (as one turn it would)" if without else "")


def draw(kind: str) -> str:
    """`kind` on the example row as text: '#' reads the past, 'O' opened (the key comes after the query), '.' blocked."""
    role, turn = example()
    mask = attention_mask(kind, role, turn, grid=EXAMPLE_GRID)[0, 0].tolist()
    rows = [LETTER[r] + " " + " ".join("O" if seen and j > i else "#" if seen else "." for j, seen in enumerate(row))
            for i, (r, row) in enumerate(zip(role[0].tolist(), mask))]
    return "\n".join(["  " + " ".join(EXAMPLE), *rows])


def write_png(path: str, kinds: list[str] | None = None, cell: int = 12) -> None:
    """Kinds on the example row as one picture, three a line: blue = reads the past, orange = opened, grey = blocked."""
    from PIL import Image, ImageDraw  # Pillow comes with torchvision
    kinds = kinds or [kind for kind in OPENS if kind != "v2t"]
    columns, side = min(3, len(kinds)), (len(EXAMPLE) + 3) * cell
    sheet = Image.new("RGB", (columns * side, -(-len(kinds) // columns) * side), "white")
    pen = ImageDraw.Draw(sheet)
    for n, kind in enumerate(kinds):
        left, top = n % columns * side + 2 * cell, n // columns * side + 2 * cell
        pen.text((left, top - 2 * cell + 2), kind, fill="black")
        for i, line in enumerate(draw(kind).split("\n")[1:]):
            y = top + i * cell
            pen.text((left - cell + 3, y + 1), line[0], fill="black")
            pen.text((left + i * cell + 4, top - cell + 2), line[0], fill="black")
            for j, seen in enumerate(line[2::2]):
                x = left + j * cell
                pen.rectangle((x, y, x + cell - 2, y + cell - 2), fill={"#": "#4a6fb5", "O": "#f08c28", ".": "#e4e4e4"}[seen])
    sheet.save(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw every attention mask.")
    parser.add_argument("--png", metavar="FILE", help="write the picture here as well")
    args = parser.parse_args()
    print("rows = queries, columns = keys    t text  V image  Q question  A answer  - pad\n"
          "# reads the past    O opened: reads a later token    . blocked\n")
    for kind in OPENS:
        print(f"{kind}: {ABOUT.get(kind, '')}; {verdict(kind)}\n{draw(kind)}\n")
    if args.png:
        write_png(args.png)
        print(f"wrote {args.png}: blue = reads the past, orange = opened, grey = blocked")
