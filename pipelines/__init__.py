"""Wiring: recipes, the command line, the demo; the only place that sees both `curate` and `train`."""
