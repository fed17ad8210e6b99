"""What an export says when it is done."""

from pipelines.export.target import ExportReport

COMMAND_NOTE = "command"


def describe_export(report: ExportReport) -> str:
    """Return what was written, what was left out, and the command or the keys that its reader needs."""
    if report.was_current:
        lines = [f"up to date: {report.num_samples:,} samples, every byte as it was exported"]
    else:
        files = "1 file" if report.num_files == 1 else f"{report.num_files:,} files"
        lines = [f"{report.num_samples:,} samples in {files}, {report.num_bytes / 1e6:,.1f} MB"]
    if report.num_left_out:
        lines.append(f"{report.num_left_out:,} samples were left out: {report.notes.get('left_out', '')}")
    lines += [f"{name}: {value}" for name, value in report.notes.items() if name not in (COMMAND_NOTE, "left_out")]
    if COMMAND_NOTE in report.notes:
        lines += ["", str(report.notes[COMMAND_NOTE])]
    return "\n".join(lines)
