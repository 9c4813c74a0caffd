"""SafeQwen in other libraries' pipelines: NeMo Curator, FiftyOne."""
