"""How data is made: download, annotate, select and build."""
