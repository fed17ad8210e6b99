"""Contracts between the packages: identities, file layouts and errors; imports pyarrow and the standard library only."""
