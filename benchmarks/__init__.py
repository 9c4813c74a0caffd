"""What a verdict costs, against the ways people do it today: `python -m benchmarks --suite cpu|gpu`."""
