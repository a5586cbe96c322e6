"""Benchmarks of iobus beside its peers, each pair measured in one run: `python -m benchmarks`.

Outside the package: nothing in `src/` imports this. One module a benchmark, each with `run(quick)`
that returns rows; `report.py` says what a row is. docs/benchmarks.md says how to read them.
"""
