"""Charts, by matplotlib: validation accuracy over the steps of finished runs; and figures.

    python -m lab.curves RUN [RUN ...] --png FILE     accuracy of finished runs; seeds are pooled
    python -m lab.curves --figure FILE                causal and mma over one example of the world
    python -m lab.curves --masks FILE                 every mask

mma is orange and causal is blue, in all of them. FILE of --png may end in .pdf or .svg, too.
Training draws its own curves (watch.py).
"""

import re
from pathlib import Path

import data
from data.errors import need
from engine.options import Parser
from engine.run import check_writable, one_line_errors, read_record
from engine.tables import pool
from lab import figures
from lab.results import curve_of
from lab.watch import COLOURS, OTHERS, figure


def arm_of(label: str) -> str:
    """The arm that a label begins with. A run is called DATA-ARM-SEED where nothing else tells it
    apart."""
    name = label.split(" ")[0].split("@")[0]
    run = re.fullmatch(r"[^-]+-(.+)-\d+'*", name)
    return run[1] if run and name not in COLOURS else name


def colours_of(labels: list[str]) -> dict[str, tuple]:
    """A colour for each label, by the arm that it begins with; mma@2, mma@4: shades of one colour,
    the last the darkest."""
    from matplotlib.colors import to_rgb

    arms = [arm_of(label) for label in labels]
    unknown = [arm for arm in dict.fromkeys(arms) if arm not in COLOURS]
    base = COLOURS | {arm: OTHERS[k % len(OTHERS)] for k, arm in enumerate(unknown)}
    colours = {}
    for k, (label, arm) in enumerate(zip(labels, arms)):
        pale = 0.7 * arms[k + 1 :].count(arm) / arms.count(arm)
        colours[label] = tuple(c + pale * (1 - c) for c in to_rgb(base[arm]))
    return colours


def write_curves(path, groups: dict[str, list[dict]]) -> None:
    """A PNG of validation accuracy (0 to 1) over the steps of stage 2: means and, shaded, from the
    lowest to the highest seed. groups: label -> for each seed, step -> accuracy."""
    need("pandas", "curves of several runs")
    import pandas as pd

    frames = {label: 100 * pd.DataFrame(runs).sort_index(axis=1)
              for label, runs in groups.items() if any(runs)}  # fmt: skip
    if not frames:
        raise data.DataError(
            "no run looked at its validation split (--eval-every), so there are no curves to draw"
        )
    (fig, (ax,)), colours = figure(7.2, 4.2), colours_of(list(frames))
    for label, seeds in frames.items():
        style = dict(color=colours[label], marker="o" if len(seeds.columns) < 6 else None)
        ax.plot(seeds.columns, seeds.mean(), label=label, linewidth=2, **style)
        if len(seeds) > 1:
            reach = dict(color=colours[label], alpha=0.18, linewidth=0)
            ax.fill_between(seeds.columns, seeds.min(), seeds.max(), **reach)
    ax.set(xlabel="step of stage 2", ylabel="validation accuracy, %")
    ax.set_ylim(top=100)
    ax.legend(frameon=False, loc="best")
    fig.savefig(path)


def write_curves_of(path, runs: list[Path]) -> None:
    """The curves of finished runs."""
    groups = pool([{**read_record(run), "run": str(run)} for run in runs])
    curves = {label: [curve_of(Path(r["run"])) for r in some] for label, some in groups.items()}
    write_curves(path, curves)


def main(argv=None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("-h", "--help", action="help", help="show this and exit")
    add("runs", nargs="*", type=Path, metavar="RUN", help="finished runs")
    add("--png", type=Path, metavar="FILE", help="their validation accuracy")
    add("--figure", type=Path, metavar="FILE", help="two masks over an example")
    add("--masks", type=Path, metavar="FILE", help="every mask")
    args = parser.parse_args(argv)
    with one_line_errors():
        if bool(args.runs) != bool(args.png) or not (args.runs or args.figure or args.masks):
            raise data.DataError("RUN and --png belong together; else --figure or --masks")
        check_writable(args.png, args.figure, args.masks)
        if args.png:
            write_curves_of(args.png, args.runs)
        if args.figure:
            figures.write_figure(args.figure)
        if args.masks:
            figures.write_masks(args.masks)
        for file in filter(None, (args.png, args.figure, args.masks)):
            print(f"wrote {file}")


if __name__ == "__main__":
    main()
