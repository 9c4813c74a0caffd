"""Pictures in, verdicts out: batches, what "unsafe" means, the prompt around a picture, the pipeline."""
