"""From a finished training run to a folder, or a Hub repository, that anyone can load."""
