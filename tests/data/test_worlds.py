"""What every built-in world promises. What is special to one stands in a file of its own."""

import pickle
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import islice
from types import SimpleNamespace

import oracles
import pytest
import torch
from helpers import ROOT
from oracles import questions_of

import data
from data import DataError, families
from data import __main__ as shown
from data.families import SPLITS, split_of
from data.nlvr.world import World as TowersAndItems
from data.shapes import Shapes
from data.shapes.pairs import Pairs
from data.shapes.text import ShapesText
from data.sounds import Sounds
from engine.options import RECIPES
from engine.plan import not_asked
from mma import Role

IN_FAMILIES = {
    "shapes": Shapes, "shapes-pairs": Pairs, "shapes-text": ShapesText, "sounds": Sounds,
}  # fmt: skip
ALL = {**IN_FAMILIES, "some shapes": lambda: Shapes(640), "nlvr": TowersAndItems}
in_families = pytest.mark.parametrize("make", IN_FAMILIES.values(), ids=IN_FAMILIES)
every_world = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


@pytest.fixture(autouse=True)
def uncached(monkeypatch):
    """Held-out examples made anew, not those that conftest.py keeps, and of fewer scenes."""
    monkeypatch.setattr(families, "HELD_OUT", 60)
    monkeypatch.setattr(Shapes, "heldout", families.World.heldout)


def content(examples) -> list:
    """All that examples hold, so that it can be compared."""
    pictures = [[hash(image.numpy().tobytes()) for image in e.images] for e in examples]
    return [(e.turns, e.family, e.id, shown) for e, shown in zip(examples, pictures)]


@every_world
@pytest.mark.parametrize("stage,step", [("pt", 200), ("sft", 7)])
def test_a_step_follows_stage_step_and_seed_alone(make, stage, step):
    """Also in a worker, which gets the world pickled."""
    world, other_stage = make(), "sft" if stage == "pt" else "pt"
    drawn = content(world.draw(stage, step, 16, 4, 0))
    world.heldout("val", 3)
    assert drawn == content(world.draw(stage, step, 16, 4, 0))
    assert drawn == content(pickle.loads(pickle.dumps(world)).draw(stage, step, 16, 4, 0))
    for of in ((stage, step + 1, 16, 4, 0), (stage, step, 16, 4, 1), (other_stage, step, 16, 4, 0)):
        assert drawn != content(world.draw(*of))


@every_world
def test_a_step_is_what_a_batch_is_made_of(make, tokenizer):
    """As many pictures and questions as it is asked for, of the families it says; pictures of one
    size, an <image> for each; answers of the closed set where they are held out."""
    world, side = make(), 100 if make is TowersAndItems else 64
    captions, asked = world.draw("pt", 0, 16, 5, 0), world.draw("sft", 500, 16, 5, 0)
    held = world.heldout("val", 40)
    # In words alone a scene's questions are turns; beside NLVR's sentence stands a second turn
    turns = sum(len(e.turns) for e in asked)
    assert len(captions) == 16 and turns == 16 * 5 * (2 if make is TowersAndItems else 1)
    assert len(asked) == (16 if make is ShapesText else 16 * 5)
    if make is not TowersAndItems:  # the questions of a scene share its pictures, as objects
        shown = {id(image) for e in asked for image in e.images}
        assert len(shown) == {Pairs: 32, ShapesText: 0}.get(make, 16)
    if make not in (TowersAndItems, ShapesText):
        assert {e.family for e in asked} == {*world.families_of("sft", 500)}
        first = world.draw("sft", 0, 16, 5, 0)
        assert {e.family for e in first} == {*world.families_of("sft", 0)}
    for e in [*captions, *asked, *held]:
        for image in e.images:
            assert image.dtype == torch.uint8 and image.shape == (3, side, side)
        row = data.encode(e, tokenizer, 4)
        assert row.role.count(Role.IMAGE) == 4 * len(e.images) and Role.ANSWER in row.role
        assert e.family and all(answer.strip() for _, answer in e.turns)
    assert all(len(e.turns) == 1 and e.turns[0][1] in world.answers for e in held)


@pytest.mark.parametrize("make", [*IN_FAMILIES.values(), TowersAndItems])
def test_texts_have_every_word_of_what_is_drawn_and_held_out(make):
    """The tokenizer is trained on them: it then knows each word whole."""
    world = make()
    texts = islice(world.texts(), 20_000 if make is TowersAndItems else 6000)
    known = {word for text in texts for word in text.split()} | {"first", "second"}  # of a pair
    steps = [("pt", 0), ("pt", 500), ("sft", 0), ("sft", 1500)]
    drawn = [e for step in steps for e in world.draw(*step, 16, 6, 3)]
    for e in [*drawn, *world.heldout("val"), *world.heldout("test")]:
        words = " ".join(text for turn in e.turns for text in turn)
        assert {*words.replace(data.IMAGE_TOKEN, " ").split()} <= known


@every_world
def test_what_is_held_out_is_always_the_same_and_a_limit_is_its_beginning(make):
    whole = content(make().heldout("test"))
    assert content(make().heldout("test", 7)) == whole[:7] != content(make().heldout("val", 7))


@in_families
def test_splits_are_disjoint_and_held_out_scenes_are_of_theirs(make):
    """So no scene of val or test is in training, alone or in a pair."""
    world, found = make(), {}
    assert sorted(i for residues in SPLITS.values() for i in residues) == list(range(10))
    assert world.split_names() == list(SPLITS) and world.final_split == "test"
    for split, residues in SPLITS.items():
        layout = world.drawn(split, 200, "a key")[0].layout
        cells = torch.cat([layout, torch.tensor(world.layouts(split))]).flatten(0, -2)
        assert len(layout) == 200 and set(split_of(cells).tolist()) <= set(residues)
        found[split] = {tuple(scene) for scene in cells.tolist()}
    assert sum(map(len, found.values())) == len(set().union(*found.values()))


@in_families
def test_families_take_turns_and_answers_are_balanced(make):
    """Each scene is asked all families. An answer is as likely as any other that makes sense for
    the question, and each one occurs."""
    world, starts, answers, counts = make(), set(), set(), defaultdict(Counter)
    n = len(world.families)
    for asked in questions_of(world, 2500, n + 1, 2)[1]:
        names = [family for family, *_ in asked]
        assert names[0] == names[-1] and {*names} == {*world.families}
        starts.add(names[0])
        for family, question, answer in asked[:n]:
            known = list(world.known_answers(question))
            counts[family, len(known)][known.index(answer)] += 1
            answers.add(answer)
    assert starts == {*world.families} and answers == world.answers
    for (family, n_known), places in counts.items():
        shares = [count / places.total() for count in places.values()]
        assert len(shares) == n_known and max(shares) - min(shares) < 0.05, (family, places)
    held = world.heldout("val")
    assert Counter(e.family for e in held) == dict.fromkeys(world.families, 60)
    assert [e.id for e in held] == [f"val-{i // n}" for i in range(60 * n)]


@pytest.mark.parametrize("make,oracle", [
    (Shapes, oracles.of_shapes), (Pairs, oracles.of_pairs), (Sounds, oracles.of_sounds),
])  # fmt: skip
def test_every_answer_is_exact(make, oracle):
    """In training and where they are held out; shapes-text asks what shapes asks."""
    world = make()
    for scene, asked in zip(*questions_of(world, 400, 12, 3)):
        assert all(oracle(scene, question) == answer for _, question, answer in asked)
    scenes, n = world.layouts("val"), len(world.families)
    for i, e in enumerate(world.heldout("val")):
        ((message, answer),) = e.turns
        assert oracle(scenes[i // n], message.removeprefix(world.before)) == answer


@in_families
def test_the_question_alone_tells_little(make):
    for family, (ceiling, chance) in shown.question_only(make(), 5000).items():
        assert ceiling < chance + 0.03, family


@pytest.mark.parametrize("make, pt_steps, steps, families", [
    (Shapes, 9, 0, list(Shapes.families)), (Shapes, 9, 400, ["spatial"]), (Shapes, 9, 401, []),
    (ShapesText, 0, 400, ["spatial"]), (ShapesText, 1, 400, []), (TowersAndItems, 9, 0, []),
])  # fmt: skip
def test_what_a_run_has_not_asked_yet(make, pt_steps, steps, families):
    assert not_asked(make(), SimpleNamespace(pt_steps=pt_steps), steps) == families


# --- By name


def test_an_option_that_a_data_set_does_not_take_is_an_error_that_names_those_that_do():
    for name, world in data.WORLDS.items():
        source = {"source": "x"} if "source" in world.takes else {}
        for option in {*data.OPTIONS} - {*world.takes}:
            takers = [other for other in data.NAMES if option in data.WORLDS[other].takes]
            flag = "--" + option.replace("_", "-")
            says = f"{flag} belongs to --data {' or '.join(takers)}, not to {name}"
            with pytest.raises(DataError, match=re.escape(says)):
                data.load(name, **{**source, option: 16})
        if source:
            with pytest.raises(DataError, match=re.escape(f"--data {name} needs --source: the")):
                data.load(name)


def test_every_data_set_has_a_recipe_and_a_fork_adds_one_by_a_line(monkeypatch):
    assert set(data.NAMES) == set(RECIPES)
    assert data.load("shapes", scenes=48, strict=False, images=None).n_blocks == 3
    monkeypatch.setitem(data.WORLDS, "walls", data.DataSet("builtins:dict", ("scenes",)))
    assert data.load("walls", scenes=3) == {"scenes": 3}


def test_a_world_is_imported_when_it_is_asked_for():
    """Nor what reads files, for a world that has none."""
    code = """
import sys, data, engine.options
loaded = lambda: {name.split(".")[1] for name in sys.modules if name.startswith("data.")}
assert not loaded() & {"shapes", "sounds", "nlvr", "llava", "easy_vqa", "families"}, loaded()
data.load("shapes")
files = {"folder", "files", "pictures", "llava", "easy_vqa"}
assert "shapes" in loaded() and not loaded() & {"sounds", "nlvr", *files}, loaded()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name,writes,refused", [
    ("shapes", ["--png"], "--wav"), ("shapes-pairs", ["--png"], "--wav"),
    ("shapes-text", [], "--png"), ("sounds", ["--png", "--wav"], None),
    ("nlvr", ["--png"], "--wav"),
])  # fmt: skip
def test_a_world_is_shown(name, writes, refused, monkeypatch, capsys, tmp_path):
    few = shown.question_only
    monkeypatch.setattr(shown, "question_only", lambda world: few(world, 400))
    files = {option: tmp_path / f"x.{option[2:]}" for option in writes}
    shown.main([name, *(str(word) for option in files.items() for word in option)])
    out = capsys.readouterr().out
    assert "<image>" not in out and "examples a second" in out
    assert re.search(r"^  .* -> [a-z0-9 ]+$", out, re.M)
    assert ("question only  chance" in out) == (name != "nlvr")
    assert all(file.stat().st_size > 1000 for file in files.values())
    if refused:
        with pytest.raises(SystemExit):
            shown.main([name, refused, "x"])
        assert f"error: {refused}" in capsys.readouterr().err
