"""A run knows the code that made it."""

import shutil
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT, TINY

import eval as evaluation
import train
from engine import code
from engine.run import read_record
from lab import variants

PLAIN = SimpleNamespace(variant=None)
CCA = SimpleNamespace(variant="cca")


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The files in a folder of their own, in which one can be changed."""
    for pattern in code.DECIDE:
        for file in ROOT.glob(pattern):
            place = tmp_path / "copy" / file.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    monkeypatch.setattr(code, "ROOT", tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("name", ["mma.py", "train.py", "data/nlvr/world.py", "engine/batches.py"])
def test_a_changed_file_is_other_code_and_its_line_ends_are_not(copy, name):
    before, text = code.fingerprint(PLAIN), (copy / name).read_text("utf-8")
    (copy / name).write_bytes(text.replace("\n", "\r\n").encode())
    assert code.fingerprint(PLAIN) == before and len(before) == 16
    (copy / name).write_text(text + "\n# changed\n")
    assert code.fingerprint(PLAIN) != before


def test_the_module_of_a_variant_counts_where_it_is_used(copy, monkeypatch):
    (copy / "lab").mkdir()
    shutil.copy(variants.__file__, copy / "lab")
    monkeypatch.setattr(variants, "__file__", str(copy / "lab" / "variants.py"))
    before = code.fingerprint(PLAIN), code.fingerprint(CCA)
    assert before[0] != before[1]
    with open(copy / "lab" / "variants.py", "a") as file:
        file.write("# changed\n")
    assert code.fingerprint(PLAIN) == before[0] and code.fingerprint(CCA) != before[1]


def test_the_program_counts(monkeypatch):
    monkeypatch.setitem(sys.modules, "of_lab", SimpleNamespace(__file__=str(ROOT / "lab/eyes.py")))
    assert code.fingerprint(PLAIN, "of_lab") != code.fingerprint(PLAIN, "train")


def test_a_hugging_face_model_has_a_code_too(monkeypatch):
    args = SimpleNamespace(model="folder", out="run", data="shapes")
    found = SimpleNamespace(__file__=str(ROOT / "bridge/hf_finetune.py"))
    monkeypatch.setitem(sys.modules, "of_bridge", found)
    assert code.fingerprint(args, "of_bridge") != code.fingerprint(PLAIN, "train")


def test_runs_of_other_code_are_not_pooled_in_silence(tmp_path, monkeypatch, capsys, no_drawing):
    """Nor does a run go on with other code in silence."""
    few = [*TINY, "--pt-steps", "1", "--steps", "1", "--limit", "2", "--val-limit", "2"]
    names = [str(tmp_path / seed) for seed in "01"]
    train.main([*few, "--seed", "0", "--out", names[0]])
    assert read_record(tmp_path / "0")["code"] == code.fingerprint(PLAIN)
    monkeypatch.setattr(code, "DECIDE", (*code.DECIDE, "LICENSE"))  # as if a file had changed
    train.main([*few, "--seed", "1", "--out", names[1]])
    capsys.readouterr()
    evaluation.main([*names, "--device", "cpu", "--limit", "20"])
    said = capsys.readouterr().out
    assert "2 versions of the code" in said and "2 seeds" not in said
    evaluation.main([names[0], "--device", "cpu", "--limit", "20"])
    assert "of the code" not in capsys.readouterr().out


def test_a_run_that_goes_on_with_other_code_names_both(tmp_path, monkeypatch, capsys, no_drawing):
    plain = train.clip_and_step
    with monkeypatch.context() as patch:
        steps = iter([plain, plain, lambda *args: 1 / 0])
        patch.setattr(train, "clip_and_step", lambda *args: next(steps)(*args))
        with pytest.raises(ZeroDivisionError):
            train.main([*TINY, "--save-every", "1", "--out", str(tmp_path / "run")])
    before = code.fingerprint(PLAIN)
    monkeypatch.setattr(code, "DECIDE", (*code.DECIDE, "LICENSE"))
    train.main([*TINY, "--resume", "--out", str(tmp_path / "run")])
    assert "the code has changed since" in capsys.readouterr().out
    assert read_record(tmp_path / "run")["code"] == f"{before}+{code.fingerprint(PLAIN)}"
