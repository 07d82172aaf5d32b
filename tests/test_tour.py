"""docs/tour.ipynb runs from nothing, opened where it lies."""

import pytest
from helpers import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


@pytest.mark.slow
def test_no_cell_of_the_tour_fails():
    """nbclient raises what a cell raised."""
    tour = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    where = {"metadata": {"path": ROOT / "docs"}}
    nbclient.NotebookClient(tour, timeout=600, resources=where).execute()
