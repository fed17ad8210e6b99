"""`python -m pipelines.cli` is `winnow`."""

from pipelines.cli import main

main()
