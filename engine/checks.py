"""Checks of a model's sizes and of its batches, on whatever device they lie.

Shapes:  B rows   T tokens of a row   n image tokens of a picture   N pictures   P their places
"""

import torch
from torch import Tensor

from mma import EXTRA_PAIRS

DIVISIBLE = [
    ("image_size", "patch_size"),
    ("encoder_width", "encoder_heads"),
    ("d_model", "n_head"),
    ("n_head", "n_kv_head"),
]


def check_sizes(config) -> None:
    """ValueError unless a model can have the sizes of a model.Config."""
    if config.mask not in EXTRA_PAIRS:
        raise ValueError(f"unknown mask {config.mask!r}; allowed: {', '.join(EXTRA_PAIRS)}")
    for name, divisor in DIVISIBLE:
        a, b = getattr(config, name), getattr(config, divisor)
        if b < 1 or a < 1 or a % b:
            raise ValueError(f"{name}={a} must be a multiple of {divisor}={b}")
    if config.head_width % 2:
        raise ValueError(f"RoPE needs an even width of a head, not {config.head_width}")


def check_image(images: Tensor, size: int) -> None:
    """ValueError unless images is uint8 [N, 3, size, size]."""
    if images.dtype != torch.uint8 or images.shape[1:] != (3, size, size):
        got = f"{images.dtype} {list(images.shape)}"
        raise ValueError(f"images must be uint8 [N, 3, {size}, {size}], got {got}")


def check(ok: Tensor, message) -> None:
    """ValueError(message()) unless all of ok, bool, is true. A GPU checks by itself, so that the
    host need not wait for it; its error says less."""
    if ok.device.type in ("cuda", "meta"):
        torch._assert_async(ok.all(), "a batch does not fit the model; on a CPU the error says why")
    elif not ok.all():
        raise ValueError(message())


def check_pictures(
    is_image: Tensor, n: int, images: Tensor | None, image_index: Tensor | None
) -> None:
    """ValueError unless the image tokens of the rows, bool [B, T], are P runs of n, and
    image_index, int64 [P], names only pictures of images [N, ...]."""
    N, P = (0 if x is None else len(x) for x in (images, image_index))
    per_row = is_image.sum(1)
    check(
        (per_row.sum() == P * n) & (per_row % n == 0),
        lambda: (
            f"{P} pictures of {n} image tokens each do not fit the rows' image tokens, "
            f"counted row by row: {per_row.tolist()}"
        ),
    )
    if P:
        check(
            (image_index >= 0) & (image_index < N),
            lambda: (
                f"image_index names the images {sorted(set(image_index.tolist()))}, "
                f"but {N} are given"
            ),
        )
