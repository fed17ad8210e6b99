"""Word lists that operators bring along; each may be replaced by a file of one's own."""
