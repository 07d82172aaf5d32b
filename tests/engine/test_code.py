"""A run knows the code that made it."""

import shutil
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT, TINY

import train
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


def test_the_program_counts(monkeypatch):
    """That of a Hugging Face model, too, which has no variant."""
    for name, args in (
        ("lab/eyes.py", PLAIN), ("bridge/hf_finetune.py", SimpleNamespace(model="folder")),
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, "program", SimpleNamespace(__file__=str(ROOT / name)))
        assert code.fingerprint(args, "program") != code.fingerprint(PLAIN, "train")


def test_a_run_that_goes_on_with_other_code_names_both(tmp_path, monkeypatch, capsys, no_drawing):
    plain = train.clip_and_step
    with monkeypatch.context() as patch:
        steps = iter([plain, plain, lambda *args: 1 / 0])
        patch.setattr(train, "clip_and_step", lambda *args: next(steps)(*args))
        with pytest.raises(ZeroDivisionError):
            train.main([*TINY, "--save-every", "1", "--out", str(tmp_path / "run")])
    before = code.fingerprint(PLAIN)
    monkeypatch.setattr(code, "CORE", (*code.CORE, "LICENSE"))  # as if a file had changed
    train.main([*TINY, "--resume", "--out", str(tmp_path / "run")])
    assert "the code has changed since" in capsys.readouterr().out
    record = read_record(tmp_path / "run")
    assert record["code"] == {"core": f"{before['core']}+{code.fingerprint(PLAIN)['core']}"}
    assert code.told_apart([record, record]) == ""
    assert "2 versions of the code" in code.told_apart([record, {**record, "code": before}])


def test_a_part_that_one_run_alone_has_makes_no_version():
    plain, cca = ({"code": code.fingerprint(args, "train")} for args in (PLAIN, CCA))
    assert cca["code"].keys() == {"core", "lab/variants.py"}
    assert code.told_apart([plain, cca]) == "" != code.told_apart([plain, {"code": "of before"}])
    other = {"code": {**cca["code"], "lab/variants.py": "another"}}
    assert "2 versions" in code.told_apart([plain, cca, other])
