"""A run knows the code that made it."""

import shutil
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT, TINY, train_and_crash, train_tiny

from engine import code
from engine.run import read_record
from lab import variants

PLAIN, CCA = SimpleNamespace(variant=None), SimpleNamespace(variant="cca")


def test_a_changed_file_is_other_code_and_its_line_ends_are_not(tmp_path, monkeypatch):
    """Of the four files, data/ and engine/, and the module of a variant where it is used."""
    for file in [f for pattern in (*code.CORE, "lab/*.py") for f in ROOT.glob(pattern)]:
        place = tmp_path / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    monkeypatch.setattr(variants, "__file__", str(tmp_path / "lab" / "variants.py"))
    plain, cca = code.fingerprint(PLAIN), code.fingerprint(CCA)
    assert cca == {**plain, "lab/variants.py": cca["lab/variants.py"]} and len(plain["core"]) == 16
    files = ("mma.py", "train.py", "data/nlvr/world.py", "engine/batches.py", "lab/variants.py")
    for file in (tmp_path / name for name in files):
        text = file.read_text("utf-8")
        file.write_bytes(text.replace("\n", "\r\n").encode())
        assert code.fingerprint(PLAIN) == plain and code.fingerprint(CCA) == cca
        file.write_text(text + "\n# changed\n", "utf-8")
        assert code.fingerprint(CCA) != cca
        assert (code.fingerprint(PLAIN) == plain) == (file.parent.name == "lab")
        file.write_text(text, "utf-8")


@pytest.mark.parametrize("file, args", [
    ("lab/eyes.py", PLAIN),
    ("bridge/hf_finetune.py", SimpleNamespace(model="Hugging Face's, which has no variant")),
])  # fmt: skip
def test_the_program_counts(monkeypatch, file, args):
    monkeypatch.setitem(sys.modules, "program", SimpleNamespace(__file__=str(ROOT / file)))
    assert code.fingerprint(args, "program") != code.fingerprint(PLAIN, "train")


def test_a_run_that_goes_on_with_other_code_names_both(tmp_path, monkeypatch, capsys, no_drawing):
    train_and_crash(tmp_path / "run", 4, *TINY)
    before = code.fingerprint(PLAIN)["core"]
    monkeypatch.setattr(code, "CORE", (*code.CORE, "LICENSE"))  # as if a file had changed
    train_tiny(tmp_path / "run", "--resume")
    assert "the code has changed since" in capsys.readouterr().out
    made_by = read_record(tmp_path / "run")["code"]
    assert made_by == {"core": f"{before}+{code.fingerprint(PLAIN)['core']}"}


@pytest.mark.parametrize("made_by, versions", [
    (["a", "a"], 0), (["a", "b"], 2), (["a", {"core": "b"}], 2), (["a", None, "b"], 3),
    ([{"core": "a"}, {"core": "a", "lab": "x"}], 0),  # a part that one alone has
    ([{"core": "a"}, {"core": "a", "lab": "x"}, {"core": "a", "lab": "y"}], 2),
])  # fmt: skip
def test_versions_are_told_apart_where_runs_share_a_part(made_by, versions):
    said = code.told_apart([{"code": made} if made else {} for made in made_by])
    assert f"made by {versions} versions" in said if versions else said == ""
