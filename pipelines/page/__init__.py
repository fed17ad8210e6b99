"""The look of Winnow's pages and the safe way to fill them: one theme, templates that escape, words for numbers."""
