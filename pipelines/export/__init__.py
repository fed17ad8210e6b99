"""Exports: a selection or a dataset in the layout that another tool reads. One file per format; nothing here unpickles or pickles."""
