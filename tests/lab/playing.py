"""Runs for the playground's page, and how the page is written; for two test files."""

from pages import make_run

from lab import playground
from lab.weights import give_away

SIZES = dict(  # of the preset tiny; make_run's are smaller
    encoder_width=128, encoder_layers=2, encoder_heads=4, d_model=128, n_layer=4, n_head=4, d_ff=256
)  # fmt: skip


def half(folder, tokenizer, **settings):
    """A run of random weights, rounded to half precision as the page rounds them."""
    make_run(folder / "full", tokenizer, **settings)
    give_away(folder / "full", folder / "half")
    return str(folder / "half")


def write(out, *runs):
    playground.main([*map(str, runs), "--out", str(out)])
    return out
