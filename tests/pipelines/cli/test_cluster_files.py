"""The files for clusters in docs/cluster: their syntax, and that what they call exists."""

import re
import subprocess
from pathlib import Path

import pytest
import typer.main
import yaml

from pipelines.cli import app
from pipelines.recipe import load_recipe

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "cluster"


def check_command(text: str) -> None:
    """Check that a `winnow` command line has a verb and flags that exist."""
    words = text.split()
    verb = words[1]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert verb in commands
    flags = {flag for parameter in commands[verb].params for flag in parameter.opts}
    unknown = [word for word in words if word.startswith("--") and word not in flags]
    assert not unknown, f"{unknown} of {text!r}"


def test_the_job_of_kubernetes() -> None:
    job = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    check_command(job["spec"]["entrypoint"])
    load_recipe(job["spec"]["entrypoint"].split()[2])
    cluster = job["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}" in re.findall(r"^ray==\S+", (ROOT / "constraints.txt").read_text(), re.M)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [found for group in groups for found in group["template"]["spec"]["containers"]]
    # Drivers and workers of different versions do not understand each other.
    assert len({container["image"] for container in containers}) == 1
    assert all(found["resources"]["requests"] == found["resources"]["limits"] for found in containers)
    assert {group["replicas"] for group in groups[1:]} == {8, 2}


def test_the_job_of_slurm() -> None:
    path = FOLDER / "winnow.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    joined = path.read_text().replace("\\\n", " ")
    (command,) = re.findall(r'"\$venv/bin/winnow" (run .*)', joined)
    check_command(f"winnow {command}")


@pytest.mark.parametrize("line", re.findall(r"^winnow .*$", (ROOT / "docs" / "cluster.md").read_text(), re.M))
def test_the_commands_of_the_page(line: str) -> None:
    check_command(line)
