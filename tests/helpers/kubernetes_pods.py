"""The Jobs of the shipped files for Kubernetes, and what their pods run."""

import re
from pathlib import Path

import yaml
from small_runs import ROOT

FILES = sorted((ROOT / "cluster").glob("*.yaml"))


def documents(file: Path):
    """The objects of one file."""
    return list(yaml.safe_load_all(file.read_text()))


PODS = [
    (f"{file.stem}: {job['metadata']['name']}", job["spec"]["template"]["spec"])
    for file in FILES
    for job in documents(file)
    if job["kind"] == "Job"
]


def arguments(pod, index=0):
    """Of `latentdd`, with the variables that the Job's controller sets in the pod of an index."""
    (container,) = pod["containers"]
    return [re.sub(r"\$\(JOB_COMPLETION_INDEX\)", str(index), word) for word in container["args"]]
