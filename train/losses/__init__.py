"""One file = one loss, found by its name; `train/loss.py` says what it must look like."""
