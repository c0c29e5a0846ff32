"""Speed, measured: each benchmark runs its anchor beside meshnode in the same run and reports the ratio of medians.

`make bench` runs all; `python -m benchmarks.rpc` runs one. All traffic stays on loopback and is bounded in count.
"""
