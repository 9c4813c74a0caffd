"""
Fine-tunes a SafeQwen, or puts a guard on a Qwen2.5-VL, with transformers' Trainer and PEFT.

Read in this order: `arguments` (what a configuration file may hold), `trainer` (the two losses and the two learning
rates), `run` (the run from start to end), then `features` (the guard alone) and `checkpoints` (the run's folder).

A run's folder holds `run.json` (settings, versions, git commit, data and their fingerprint, metrics), checkpoints, and
`final/`: an adapter, a whole model, or the guard alone, with the processor. `safeqwen export` makes of it a model that
anyone can load.
"""
