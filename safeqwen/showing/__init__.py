"""Drawing verdicts for people: in a notebook, in a terminal. Nothing here knows the model: things go by attributes."""
