"""What `benchmarks/run.py` measures, a file for each suite."""
