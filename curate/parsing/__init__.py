"""Captions into objects, attributes and actions."""
