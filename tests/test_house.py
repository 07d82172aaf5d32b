"""The house: which way imports point, what stands at the root, and the budgets."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ["mma", "data", "engine", "model", "eval", "train", "bridge", "lab"]  # from the ground up
BUDGETS = {"mma.py": 180, "model.py": 340, "eval.py": 180, "train.py": 240}
AT_THE_ROOT = {
    *BUDGETS, "README.md", "LICENSE", "CONTRIBUTING.md", "pyproject.toml", "requirements.txt",
    "requirements-test.txt", ".ci", ".github", ".gitignore", "data", "engine", "lab", "bridge",
    "docs", "weights", "tests",
}  # fmt: skip
BLOCKS = (ast.For, ast.While, ast.If, ast.With, ast.Try)


def files() -> list[Path]:
    """The Python files of the project, as git knows them."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]


def floor_of(name: str) -> int | None:
    part = name.split("/")[0].split(".")[0]
    return FLOORS.index(part) if part in FLOORS else None


def imported(node) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def upward(source: str, floor: int) -> list[str]:
    """The imports of a file that point up, except those of what is only run as a command: in the
    body of a function `main`, or below `if __name__ == "__main__"`."""
    tree, run = ast.parse(source), ast.dump(ast.parse('__name__ == "__main__"', mode="eval").body)
    doors = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "main"]
    doors += [n for n in tree.body if isinstance(n, ast.If) and ast.dump(n.test) == run]
    allowed = {id(node) for door in doors for node in ast.walk(door)}
    nodes = [node for node in ast.walk(tree) if id(node) not in allowed]
    names = [name for node in nodes for name in imported(node)]
    return [name for name in names if (floor_of(name) or 0) > floor]


def test_imports_point_down():
    wrong = []
    for file in files():
        name = file.relative_to(ROOT).as_posix()
        if (floor := floor_of(name)) is not None:
            found = upward(file.read_text("utf-8"), floor)
            wrong += [f"{name} -> {up}" for up in found]
    assert not wrong


def test_the_check_of_imports_can_fail():
    assert upward("import model", FLOORS.index("data")) == ["model"]
    assert upward("def f():\n    from lab import arms", FLOORS.index("train")) == ["lab"]
    assert not upward("def main():\n    from lab import watch", FLOORS.index("train"))
    run = 'if __name__ == "{}":\n    import engine.terminal'
    assert not upward(run.format("__main__"), FLOORS.index("mma"))
    assert upward(run.format("mma"), FLOORS.index("mma")) == ["engine.terminal"]
    assert not upward("from engine.run import Run", FLOORS.index("train"))


FIRST = """
import importlib, sys
ours = {"mma", "model", "train", "eval", "data", "engine", "lab", "bridge"}
for module in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        del sys.modules[name]
    importlib.import_module(module)
"""


def test_no_circles_within_a_floor():
    """A module of each floor can be imported first."""
    first = ("engine.run", "data.shapes", "lab.variants", "eval")
    done = subprocess.run([sys.executable, "-c", FIRST, *first], cwd=ROOT)
    assert done.returncode == 0


def test_nothing_else_stands_at_the_root():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    tops = {name.split("/")[0] for name in listed.stdout.splitlines()}
    assert not {top for top in tops if (ROOT / top).exists()} - AT_THE_ROOT


FORKS = pytest.mark.skipif(not os.environ.get("CI"), reason="a fork may add a mask; CI counts")


@pytest.mark.parametrize(
    "name", [pytest.param("mma.py", marks=FORKS), *sorted({*BUDGETS} - {"mma.py"})]
)
def test_the_four_files_keep_their_budget(name):
    assert len((ROOT / name).read_text("utf-8").splitlines()) <= BUDGETS[name]


def test_no_file_is_longer_than_350_lines_or_100_columns():
    for file in files():
        lines = file.read_text("utf-8").splitlines()
        assert len(lines) <= 350, f"{file}: {len(lines)} lines"
        wide = [i for i, line in enumerate(lines, 1) if len(line) > 100]
        assert not wide, f"{file}: lines {wide}"


def depth(node, level: int = 0) -> int:
    """How deep control blocks are nested; elif is no deeper than its if."""
    deepest = level
    for child in ast.iter_child_nodes(node):
        chained = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        inside = isinstance(child, BLOCKS) and not chained
        deepest = max(deepest, depth(child, level + inside))
    return deepest


def test_functions_are_short_and_shallow():
    wrong = []
    for file in files():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.FunctionDef) or node.name == "arguments":
                continue
            lines = node.end_lineno - node.lineno + 1
            if lines > 45 or depth(node) > 3:
                name = f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
                wrong.append(f"{name}: {lines} lines, {depth(node)} deep")
    assert not wrong, "\n".join(wrong)


def test_help_of_train_fits_one_screen():
    command = [sys.executable, "train.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert "--mask" in done.stdout and len(lines) <= 55
    assert max(map(len, lines)) <= 100


def test_the_readme_is_one_page():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 200
    assert not [line for line in lines if len(line) > 160]
    rows = 0
    for line in lines:
        rows = rows + 1 if line.startswith("|") else 0
        assert rows <= 12 + 2  # with the header and its rule


def test_the_readme_prints_the_rule_as_it_stands_in_mma():
    """The lines `opened = ...` and `readable = ...`, letter by letter."""
    code = (ROOT / "mma.py").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in ("opened", "readable"):
        printed = re.findall(rf"^ *{name} += .*$", readme, re.M)
        assert len(printed) == 1
        assert printed[0].strip() in [line.strip() for line in code.splitlines()]


def test_ruff():
    """Formatted and linted, where ruff is installed (requirements-test.txt)."""
    pytest.importorskip("ruff")
    for command in (["format", "--check", "."], ["check", "."]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
