"""The last layer and the vocabulary, computed where an answer is predicted and nowhere else.

Training reads a few rows of the last layer, those that predict an answer token, and answering
reads one. The keys and values of all positions are needed there, the rest is not. docs/speed.md
says what this gains; tests/engine/test_last_layer.py holds it equal to the plain pass.

Shapes:  B rows   T tokens of a row   D width   K rows of the last layer that are read, of each row
         M answer tokens of a batch
"""

from dataclasses import replace
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mma import supervised

LOGITS_AT_ONCE = 4096  # answer tokens; more are computed in parts, to bound memory


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x [B or 1, T, ...] at rows, int64 [B, K] -> [B, K, ...]."""
    return x.expand(len(rows), *x.shape[1:])[
        torch.arange(len(rows), device=x.device)[:, None], rows
    ]


def compute_only_rows(block: nn.Module) -> None:
    """Make a decoder block compute context.rows alone, where they are given: [B, K, D]."""
    block.forward = MethodType(forward_at_rows, block)


def forward_at_rows(block, x: Tensor, context) -> Tensor:
    """type(block).forward(block, x, context), at context.rows."""
    if context.rows is None:
        return type(block).forward(block, x, context)
    rows, y = context.rows, block.norm1(x)
    rotation = tuple(gather_rows(z[:, 0], rows)[:, None] for z in context.q_rotation)
    mask = gather_rows(context.mask[:, 0], rows)[:, None]
    at_rows = replace(context, mask=mask, q_rotation=rotation)
    x = gather_rows(x, rows) + block.attention(gather_rows(y, rows), y, at_rows)
    return x + block.mlp(block.norm2(x))


def find_loss_positions(role: Tensor, document: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which rows predict an answer token. `rows`, int64 [B, K]: their columns, filled up with
    others where a row has fewer than the most; `valid_index`, int64 [M]: which of rows.flatten()
    are meant. Made by the loader, they save the GPU a wait."""
    target = supervised(role, document)[:, 1:]
    most = max(1, int(target.sum(1).max()))
    rows = target.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return rows, target.gather(1, rows).flatten().nonzero()[:, 0]


def answer_loss(model, rows: Tensor, valid_index: Tensor, num_targets=None, **batch) -> Tensor:
    """model.loss(**batch), computed at the rows that count. num_targets: another number to divide
    by, where these rows are a part of a larger batch."""
    hidden = model(**batch, rows=rows).flatten(0, 1)[valid_index]
    labels = batch["ids"][:, 1:].gather(1, rows).flatten()[valid_index]
    num_targets = max(1, len(valid_index)) if num_targets is None else num_targets

    def part(hidden, labels):
        return F.cross_entropy(model.head(hidden).float(), labels, reduction="sum")

    if len(hidden) <= LOGITS_AT_ONCE:
        return part(hidden, labels) / num_targets
    parts = zip(hidden.split(LOGITS_AT_ONCE), labels.split(LOGITS_AT_ONCE))
    return sum(checkpoint(part, h, y, use_reentrant=False) for h, y in parts) / num_targets
