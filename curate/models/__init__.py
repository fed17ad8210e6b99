"""Model wrappers shared by operators; each takes a pinned revision or a local folder."""
