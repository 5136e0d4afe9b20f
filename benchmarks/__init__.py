"""Measurements that decisions in the code rest on: `python -m benchmarks.<name>`."""
