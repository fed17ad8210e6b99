"""What exports print."""

from pipelines.export.render import describe_export
from pipelines.export.target import ExportReport


def test_counts_what_was_left_out_and_the_command_last() -> None:
    report = ExportReport(
        format="clip-retrieval",
        location="/out",
        num_samples=1234,
        num_left_out=5,
        num_files=3,
        num_bytes=2_500_000,
        notes={"dimensions": 512, "left_out": "no vector", "command": "clip-retrieval index"},
    )
    assert describe_export(report).splitlines() == [
        "1,234 samples in 3 files, 2.5 MB",
        "5 samples were left out: no vector",
        "dimensions: 512",
        "",
        "clip-retrieval index",
    ]


def test_what_was_there_already_says_so() -> None:
    report = ExportReport(format="parquet", location="/out", num_samples=7, was_current=True)
    assert describe_export(report) == "up to date: 7 samples, every byte as it was exported"
