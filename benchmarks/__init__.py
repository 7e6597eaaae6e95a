"""How fast is it? Every claim of speed against its peer, side by side, with the results compared.

    python -m benchmarks [ROW]... [--small] [--list]

A row is one function of a Setting that gives Cases (harness.py); its targets stand in rows.py.
benchmarks/reliability asks the other question: can the cache be trusted?
"""
