"""The demo: a miniature web with planted faults, curated and compared with what was planted."""
