"""The manifests of k8s/: valid, and what they say of ranks, exit codes and commands is what the program does."""

import os
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from resnet_train import cli
from resnet_train.config import load
from resnet_train.errors import BadInput, Diverged, Interrupted
from resnet_train.runtime import rank_environment
from resnet_train.runtime.rank_environment import RankEnvironment

K8S = Path(__file__).parents[1] / "k8s"
Tree = dict[str, Any]


def manifests(name: str) -> dict[str, Tree]:
    """The documents of a file by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((K8S / name).read_text())}


JOB = manifests("job.yaml")["Job"]
RUNTIME, TRAIN_JOB = (manifests("trainjob.yaml")[kind] for kind in ("TrainingRuntime", "TrainJob"))
[REPLICATED] = RUNTIME["spec"]["template"]["spec"]["replicatedJobs"]
RUNTIME_JOB: Tree = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}} | {
    "spec": REPLICATED["template"]["spec"]
}


@pytest.mark.parametrize("document", [*manifests("job.yaml").values(), RUNTIME_JOB], ids=["service", "job", "runtime"])
def test_the_manifests_are_valid(document: Tree) -> None:
    library = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    version = library.latest_version()
    library.validate(document, version, strict=True)
    with pytest.raises(library.ValidationError, match="completons"):
        library.validate(document | {"spec": document["spec"] | {"completons": 8}}, version, strict=True)


@pytest.mark.parametrize("document", [RUNTIME, TRAIN_JOB], ids=["runtime", "trainjob"])
def test_kubeflow_trainer_keeps_every_key(document: Tree) -> None:
    """A key that it does not know vanishes without a word."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    model = getattr(models, f"TrainerV1alpha1{document['kind']}")
    assert model.from_dict(document).to_dict() == document
    assert model.from_dict(document | {"speck": {}}).to_dict() == document


@pytest.mark.parametrize("job", [JOB, RUNTIME_JOB], ids=["job", "runtime"])
def test_the_policy_retries_what_a_later_try_may_do(job: Tree) -> None:
    """69 (rank lost), 73 (folder in use), 134 (aborted) and 137 (killed) count against the limit of each rank."""
    spec = job["spec"]
    fail, stopped, disrupted = spec["podFailurePolicy"]["rules"]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [Diverged.exit_code, BadInput.exit_code])
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [Interrupted.exit_code])
    assert (disrupted["action"], disrupted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert {rule["onExitCodes"]["containerName"] for rule in (fail, stopped)} == {container["name"]}
    assert (spec["completionMode"], pod["restartPolicy"]) == ("Indexed", "Never")  # else there may be no such policy
    assert spec["backoffLimitPerIndex"] > 0
    assert pod["terminationGracePeriodSeconds"] == 300


def documented_codes() -> dict[str, str]:
    """What docs/clusters.md says of each code: code -> what the Job does."""
    text = (K8S.parent / "docs/clusters.md").read_text().partition("| code | what the Job does |")[2]
    rows = [line.strip("|").split("|") for line in text.partition("\n\n")[0].splitlines()[2:]]
    return {code: does.strip() for codes, does in rows for code in re.findall(r"\d+", codes)}


@pytest.mark.parametrize("job", [JOB, RUNTIME_JOB], ids=["job", "runtime"])
def test_the_policy_does_what_the_documentation_says(job: Tree) -> None:
    """The first rule that matches a pod counts, as in Kubernetes' documentation; no rule: a failure of its index."""
    says = {
        "FailJob": "fails:",
        "Ignore": "starts the rank again; this does not count",
        None: "starts the rank again, at",
    }
    codes = documented_codes()
    assert {"1", "2", "69", "73", "75", "134", "137"} == codes.keys()
    for code, text in codes.items():
        rules = [rule for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
        actions = [rule["action"] for rule in rules if int(code) in rule["onExitCodes"]["values"]]
        assert all(rule["onExitCodes"]["operator"] == "In" for rule in rules)
        assert text.startswith(says[actions[0] if actions else None]), (code, text)
    assert job["spec"]["backoffLimitPerIndex"] == 6
    assert "at most six times for each rank" in codes["69"]


@pytest.mark.parametrize("job", [JOB, RUNTIME_JOB], ids=["job", "runtime"])
def test_what_the_program_writes_has_a_volume(job: Tree) -> None:
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume.pop("name"): next(iter(volume)) for volume in map(dict, pod["volumes"])}
    claim, empty = "persistentVolumeClaim", "emptyDir"
    assert {path: volumes[name] for path, name in mounted.items()} == {
        "/data": claim,
        "/experiments/runs": claim,
        "/dev/shm": empty,
        "/tmp": empty,
    }


def check_command(words: list[str]) -> None:
    assert words[0] == "resnet-train"
    args = cli.parse(words[1:])
    experiment = load.load(args.config, args.overrides)
    assert experiment.output == "/experiments/runs"
    assert experiment.data.model_dump()["path"] == "/data"


def place(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> RankEnvironment:
    """Where the program sees itself in an environment."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    for name in list(os.environ):
        if re.fullmatch(r"(LOCAL_)?(RANK|WORLD_SIZE)|MASTER_\w+", name):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return rank_environment.read()


def test_the_pods_of_the_job_are_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = JOB["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    check_command(container["command"])
    assert "batch.kubernetes.io/job-completion-index" in container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"]
    environment = {item["name"]: item.get("value", "3") for item in container["env"]}
    ranks = spec["completions"]
    assert spec["parallelism"] == ranks
    assert place(monkeypatch, environment) == RankEnvironment(3, ranks, 0, 1)
    service = manifests("job.yaml")["Service"]
    name = JOB["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert environment["MASTER_ADDR"] == f"{name}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]


def test_the_pods_of_the_train_job_are_its_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variables that Trainer sets for torchrun. The shell of its command waits for the name of rank 0."""
    trainer = TRAIN_JOB["spec"]["trainer"]
    assert TRAIN_JOB["spec"]["runtimeRef"]["name"] == RUNTIME["metadata"]["name"]
    assert trainer["numProcPerNode"] == 1
    for name, text in (
        ("getent", 'echo "getent $*" >>log; [ -e again ] || { >again; exit 2; }'),
        ("sleep", "exit 0"),
        ("resnet-train", 'echo "resnet-train $*" >>log; env'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "env").symlink_to(str(shutil.which("env")))
    given = {"PET_NNODES": "8", "PET_NODE_RANK": "3", "PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29400"}
    command = [str(shutil.which("sh")), *trainer["command"][1:], *trainer["args"]]
    done = subprocess.run(command, env=given | {"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    waited, named, ran = (tmp_path / "log").read_text().splitlines()
    assert waited == named == "getent hosts job-node-0-0.job"
    check_command(shlex.split(ran))
    environment = dict(line.split("=", 1) for line in done.stdout.splitlines())
    ranks = {name: environment[name] for name in environment if re.match(r"(LOCAL_)?(RANK|WORLD)|MASTER", name)}
    assert place(monkeypatch, ranks) == RankEnvironment(3, 8, 0, 1)
    assert (ranks["MASTER_ADDR"], ranks["MASTER_PORT"]) == ("job-node-0-0.job", "29400")
