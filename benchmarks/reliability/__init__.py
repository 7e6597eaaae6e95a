"""Can the cache be trusted? Faults put into real files and real processes, counted in one table.

    python -m benchmarks.reliability [--row NAME]... [--small]

Every harness is a function of (writer, size, folder) that gives a Tally. The writer is ours, or the
naive one of tests/naive.py: a harness that the naive writer passes proves nothing.
"""
