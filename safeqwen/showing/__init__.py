"""Drawing verdicts for people, in a notebook, a browser and a terminal. It knows no model."""
