"""The commands of `safeqwen`: each has `run(args)`, which prints and returns the exit code."""
