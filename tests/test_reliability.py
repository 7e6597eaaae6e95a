"""The small size of `python -m benchmarks.reliability`: every harness, on ours and on the naive
writer. A harness that the naive writer passes proves nothing, so its failing is asserted too."""
