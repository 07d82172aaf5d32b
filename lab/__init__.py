import engine.terminal  # noqa: F401 - before the heavy imports of python -m lab.NAME
