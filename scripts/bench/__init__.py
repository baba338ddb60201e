"""What the benchmarks share: a real master to measure, floors to compare with, and one module per kind of figure.

Begin at `running.py` (how a master is started, and always stopped), then `figures.py` (what comes out). Each of
`starting.py`, `idling.py`, `spawning.py`, `recovering.py` and `placing.py` has a function `measure(sizes)` that
returns its figures; `floors.py` measures the least that the same machine needs, in the same run.
"""
