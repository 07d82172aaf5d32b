"""docs/tour.ipynb shows what today's code shows: its cells are run again, with few training steps,
and what they print is compared with what is stored. Cells with the tag `measured` train: they run
here, too, but their numbers are those of the day on which all was run.

`python -m pytest .ci/*.py` checks this repository. It is no part of the suite that a fork runs.
"""

import copy
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "tour.ipynb"
STEPS = "STEPS = 200"


@pytest.fixture(scope="module")
def tour():
    return nbformat.read(FILE, as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell) -> list[str]:
    """What a cell printed, and `picture` for every picture; warnings are left out."""
    printed, pictures = "", []
    for output in cell.outputs:
        printed += output.text if output.get("name") == "stdout" else ""
        pictures += ["picture"] if "image/png" in output.get("data", {}) else []
    return [printed, *pictures]


def test_the_stored_outputs_are_those_of_todays_code(tour):
    """The solutions of the exercises run, too."""
    today = copy.deepcopy(tour)
    (cell,) = (cell for cell in code(today) if STEPS in cell.source)
    cell.source = cell.source.replace(STEPS, "STEPS = 2")
    for cell in tour.cells:
        solutions = re.findall(r"```python\n(.*?)```", cell.source, re.S)
        today.cells += map(new_code_cell, solutions)
    NotebookClient(today, timeout=600, resources={"metadata": {"path": ROOT}}).execute()
    for old, new in zip(code(tour), code(today)):
        if "measured" not in old.metadata.get("tags", ()):
            assert shown(new) == shown(old), old.source


def test_it_was_run_from_its_first_cell_to_its_last(tour):
    counts = [cell.execution_count for cell in code(tour)]
    assert counts == list(range(1, len(counts) + 1))
    assert FILE.stat().st_size < 1_500_000


def test_its_text_cells_are_short(tour):
    """Four sentences at most, beside what is folded away."""
    for cell in tour.cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"<details>.*?</details>|^#.*?$", "", cell.source, flags=re.M | re.S)
            prose = re.sub(r"`.*?`|\*\*.*?\*\*", "", prose)
            assert len(re.findall(r"[.!?](?=\s|$)", prose)) <= 4, cell.source
