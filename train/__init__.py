"""The trainer: reads datasets, knows nothing of how they were curated."""
