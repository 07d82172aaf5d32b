"""Charts, by matplotlib: validation accuracy over the steps, the curves of a training; and figures.

    python -m lab.curves RUN [RUN ...] --png FILE     accuracy of finished runs; seeds are pooled
    python -m lab.curves --figure FILE                causal and mma over one example of the world
    python -m lab.curves --masks FILE                 every mask

mma is orange and causal is blue, in all of them. Training draws its curves where matplotlib is
installed (lab/watch.py).
"""

import argparse
import statistics
from pathlib import Path

import data
from engine.options import Parser
from engine.run import one_line_errors, read_record
from engine.tables import pool
from lab.tables import curve_of, need

COLOURS = {
    "mma": "#f08c28", "causal": "#4a6fb5", "prefix": "#3c9650", "cca": "#aa3c96", "dot": "#787878",
    "v2v": "#be2828", "f": "#0096a0", "t&i": "#967828",
}  # fmt: skip
OTHERS = ["#6b4fa0", "#9bbb59", "#d66ba0", "#5f9ea0", "#b8860b", "#708090"]


def figure(width: float, height: float, columns: int = 1):
    """A figure and its axes, drawn without a window. DataError if matplotlib is missing."""
    need("matplotlib", "charts")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.grid(color="#dddddd", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def colours_of(labels: list[str]) -> dict[str, tuple]:
    """A colour for each label, by the arm that it begins with; mma@2, mma@4: shades of one colour,
    the last the darkest."""
    from matplotlib.colors import to_rgb

    arms = [label.split(" ")[0].split("@")[0] for label in labels]
    unknown = [arm for arm in dict.fromkeys(arms) if arm not in COLOURS]
    base = COLOURS | {arm: OTHERS[k % len(OTHERS)] for k, arm in enumerate(unknown)}
    colours = {}
    for k, (label, arm) in enumerate(zip(labels, arms)):
        pale = 0.7 * arms[k + 1 :].count(arm) / arms.count(arm)
        colours[label] = tuple(c + pale * (1 - c) for c in to_rgb(base[arm]))
    return colours


def draw_lines(ax, lines: dict[str, list[tuple[float, list[float]]]]) -> None:
    """label -> [(x, the value of each seed)]: the means and, shaded, from the lowest to the highest
    seed."""
    colours = colours_of(list(lines))
    for label, points in lines.items():
        x, values = [x for x, _ in points], [y for _, y in points]
        marker = "o" if len(points) < 6 else None
        means = [statistics.mean(y) for y in values]
        ax.plot(x, means, color=colours[label], label=label, marker=marker, linewidth=2)
        if any(len(y) > 1 for y in values):
            low, high = [min(y) for y in values], [max(y) for y in values]
            ax.fill_between(x, low, high, color=colours[label], alpha=0.18, linewidth=0)
    ax.legend(frameon=False, loc="best")


def write_curves(path, groups: dict[str, list[dict]], title: str | None = None) -> None:
    """A PNG of accuracy (0 to 1) over x. groups: label -> for each seed, x -> accuracy. title: of
    the x axis (default: the steps of stage 2)."""
    lines = {}
    for label, runs in groups.items():
        steps = sorted(set().union(*runs))
        lines[label] = [(x, [100 * run[x] for run in runs if x in run]) for x in steps]
    lines = {label: points for label, points in lines.items() if points}
    if not lines:
        raise data.DataError(
            "no run looked at its validation split (--eval-every), so there are no curves to draw"
        )
    fig, (ax,) = figure(7.2, 4.2)
    draw_lines(ax, lines)
    ax.set(xlabel=title or "step of stage 2 (validation accuracy)", ylabel="accuracy, %")
    ax.set_ylim(top=100)
    fig.savefig(path)


def write_training(path, records: list[dict]) -> None:
    """A PNG of the loss of both stages, and of validation accuracy, from the lines of metrics.jsonl
    so far."""
    fig, (left, right) = figure(9, 3.4, columns=2)
    names = {"pt": "stage 1: captions", "sft": "stage 2: questions"}
    losses = [r["loss"] for r in records]
    for (stage, name), colour in zip(names.items(), ("#787878", COLOURS["mma"])):
        points = [(r["step"], r["loss"]) for r in records if r["stage"] == stage]
        if points:
            left.plot(*zip(*points), color=colour, label=name)
    left.legend(frameon=False)
    left.set(xlabel="step of its stage", ylabel="loss, nats an answer token")
    left.set_ylim(0, min(3, max([*losses, 0.1])))  # the first steps' losses would flatten the rest
    accuracy = [(r["step"], 100 * r["val"]["accuracy"]) for r in records if "val" in r]
    if accuracy:
        right.plot(*zip(*accuracy), color=COLOURS["causal"], label=f"{accuracy[-1][1]:.1f} %")
        right.legend(frameon=False)
    right.set(xlabel="step of stage 2", ylabel="validation accuracy, %", ylim=(0, 100))
    fig.savefig(path)


def arguments(argv=None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="finished runs")
    parser.add_argument("--png", type=Path, metavar="FILE", help="their validation accuracy")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="two masks over an example")
    parser.add_argument("--masks", type=Path, metavar="FILE", help="every mask")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = arguments(argv)
    with one_line_errors():
        if bool(args.runs) != bool(args.png) or not (args.runs or args.figure or args.masks):
            raise data.DataError("RUN and --png belong together; else --figure or --masks")
        if args.runs:
            groups = pool([{**read_record(run), "run": str(run)} for run in args.runs])
            curves = {name: [curve_of(run["run"]) for run in runs] for name, runs in groups.items()}
            write_curves(args.png, curves)
        if args.figure or args.masks:
            from lab import figures

            if args.figure:
                figures.write_figure(args.figure)
            if args.masks:
                figures.write_masks(args.masks)
        for file in filter(None, (args.png, args.figure, args.masks)):
            print(f"wrote {file}")


if __name__ == "__main__":
    main()
