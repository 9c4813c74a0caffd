"""What made the demo checkpoint; not installed."""
