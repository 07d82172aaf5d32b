"""A built-in world, shown: what the question alone can tell, how fast it is made, what it says.

python -m data shapes
python -m data nlvr --png FILE                a sheet of pictures; nlvr: the world in its manner
python -m data sounds --wav FILE --png FILE   one sound, to hear, and spectrograms
"""

import argparse
import time
from collections import Counter, defaultdict

import torch

import data
from data.nlvr.world import World

BUILT_IN = [name for name, world in data.WORLDS.items() if "source" not in world.takes]


def question_only(world, n_scenes: int = 20_000) -> dict[str, tuple[float, float]]:
    """family -> (accuracy of the best answer to each question, known from half of the scenes, on
    the other half; chance): what the words of a question tell of its answer."""
    g = torch.Generator().manual_seed(1)
    facts = world.facts(world.new_layouts("train", n_scenes, g), g)
    asked = world.questions(facts, len(world.families))
    answer_counts, ceilings = defaultdict(Counter), {}
    for family, question, answer in (row for rows in asked[::2] for row in rows):
        answer_counts[family, question][answer] += 1
    best = {key: counts.most_common(1)[0][0] for key, counts in answer_counts.items()}
    for family in world.families:
        rows = [row for rows in asked[1::2] for row in rows if row[0] == family]
        right = sum(best.get((family, question)) == answer for _, question, answer in rows)
        chance = sum(1 / len(world.known_answers(question)) for _, question, _ in rows)
        ceilings[family] = right / len(rows), chance / len(rows)
    return ceilings


def shown(example: data.Example) -> str:
    turns = ((message.replace(data.IMAGE_TOKEN, ""), answer) for message, answer in example.turns)
    return "  " + "; ".join(f"{message.strip()} -> {answer}" for message, answer in turns)


def write_sheet(file: str, world) -> None:
    """Pictures of captions, each once."""
    from torchvision.utils import save_image

    pictures = [image for e in world.draw("pt", 0, 64, 1, 0)[::2] for image in e.images]
    save_image(torch.stack(pictures).float() / 255, file, nrow=6, pad_value=0.5)


def arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data", description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=[*BUILT_IN, "nlvr"])
    parser.add_argument("--png", metavar="FILE", help="write a sheet of pictures here")
    parser.add_argument("--wav", metavar="FILE", help="write the first test sound here")
    args = parser.parse_args(argv)
    if args.png and args.name in data.TEXT_WORLDS:
        parser.error(f"--png: {args.name} shows no picture")
    if args.wav and args.name not in data.AUDIO_WORLDS:
        parser.error(f"--wav belongs to {' or '.join(data.AUDIO_WORLDS)}")
    return args


def main(argv=None) -> None:
    args = arguments(argv)
    world = World() if args.name == "nlvr" else data.load(args.name)
    if args.name in BUILT_IN:
        print(f"{'family':<12}{'question only':>14}{'chance':>8}")
        for family, (ceiling, chance) in question_only(world).items():
            print(f"{family:<12}{ceiling:>13.1%}{chance:>8.1%}")
    start = time.perf_counter()
    made = sum(len(world.draw("sft", step, 32, 4, 0)) for step in range(10))
    print(f"{made / (time.perf_counter() - start):,.0f} examples a second")
    for example in [*world.draw("pt", 0, 32, 4, 0)[::16], *world.draw("sft", 500, 32, 4, 0)[:12]]:
        print(shown(example))
    if args.png:
        write_sheet(args.png, world)
    if args.wav:
        print(f"{args.wav}: {world.write_example(args.wav)}")


if __name__ == "__main__":
    main()
