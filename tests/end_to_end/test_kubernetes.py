"""The files for Kubernetes: valid by the API's own schemas, without privileges, and what their pods run does run."""

import pytest
from kubernetes_pods import FILES, PODS, arguments, documents
from processes import Started, free_port, latentdd
from small_runs import ROOT, small_arguments

from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.data.pruning.base import CACHE_DIR
from ldd.disk.files import sha256

VERSIONS = ("1.31", "1.34", "1.37")
"""Of Kubernetes: the oldest in which all that the files use is stable, one between, and the newest with a schema."""

by_name = pytest.mark.parametrize("pod", [pod for _, pod in PODS], ids=[name for name, _ in PODS])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_objects_are_valid_by_the_schema_of_the_api(file, version):
    schemas = pytest.importorskip("kubernetes_validate")
    for content in documents(file):
        schemas.validate(content, version, strict=True)


def test_a_wrong_field_is_noticed():
    schemas = pytest.importorskip("kubernetes_validate")
    _, job = documents(ROOT / "cluster" / "kubernetes.yaml")
    job["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(schemas.ValidationError, match="imagee"):
        schemas.validate(job, VERSIONS[-1], strict=True)


@by_name
def test_what_a_pod_writes_lies_in_its_mounts(pod, fit_parser, monkeypatch):
    monkeypatch.chdir(ROOT)
    verb, *options = arguments(pod)
    places = [option.partition("=")[2] for option in options if option.startswith("--out=")]
    if any(option.startswith("--config") for option in options):
        own = ("--out", "--subtasks", "--engine")
        of_fit = [option for option in options if not option.startswith(own)]
        found = fit_parser.parse_args(["fit", *of_fit]).fit
        places += [found.data.cache_dir, found.data.root]
    if verb == "fit":
        assert found.ckpt_path == "auto"
        places.append(found.trainer.default_root_dir)
    mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    for path in places:
        assert any(path.startswith(place) for place in mounted)
    claims = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == claims


@by_name
def test_a_pod_is_given_no_more_than_it_needs(pod):
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for kind in ("cpu", "memory", "ephemeral-storage"):
        assert {kind} <= container["resources"]["requests"].keys() & container["resources"]["limits"].keys()
    # With a root that cannot be written: runs, what our caches are by default, and temporary files.
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable - {"/dev/shm"} == {"/app/runs", "/home/latentdd/.cache", "/tmp"}
    for cache in (CACHE_DIR, "~/.cache/latentdd/latents"):
        assert cache.replace("~", "/home/latentdd").startswith("/home/latentdd/.cache/")
    for variable in container["env"]:
        if variable["name"].endswith(("_DIR", "DIR")):
            assert any(variable["value"].startswith(place) for place in writable)


@by_name
def test_secrets_are_named_and_not_written(pod):
    (token,) = [each for each in pod["containers"][0]["env"] if "TOKEN" in each["name"]]
    assert token.keys() == {"name", "valueFrom"}
    assert token["valueFrom"]["secretKeyRef"]["optional"] is True


def small(words, prior, **changed):
    """Of a pod's words those that are not about its data, for a small run in its place."""
    kept = [word for word in words if not word.startswith(("--config", "--data.", "--trainer.accelerator"))]
    if "--config=configs/paper/dm_128.yaml" in words:
        kept += [
            *map(str, small_arguments(prior)),
            "--trainer.max_steps",
            "2",
            "--preview.every_n_steps",
            "0",
        ]
    return kept + [f"--{name.replace('__', '.')}={value}" for name, value in changed.items()]


def test_the_pods_of_several_nodes_make_one_run(tiny_prior_path, tmp_path):
    """Each node's pod with its own rank and the first one's address, as the controller and the service give them."""
    _, service, job = documents(ROOT / "cluster" / "kubernetes_ddp.yaml")
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    given = {each["name"]: each.get("value") for each in container["env"]}
    name = job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert (pod["subdomain"], given["MASTER_ADDR"]) == (
        service["metadata"]["name"],
        f"{name}-0.{pod['subdomain']}",
    )
    assert int(given["MASTER_PORT"]) == service["spec"]["ports"][0]["port"]
    nodes = job["spec"]["completions"]
    assert (job["spec"]["parallelism"], job["spec"]["completionMode"]) == (nodes, "Indexed")
    assert f"--trainer.num_nodes={nodes}" in container["args"]
    run = tmp_path / "run"
    words = small(container["args"], tiny_prior_path, trainer__default_root_dir=run)
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    logs = [tmp_path / f"{index}.log" for index in range(nodes)]
    pods = [
        Started(latentdd, words, log, environment={**here, "NODE_RANK": str(index)})
        for index, log in enumerate(logs)
    ]
    assert [each.result() for each in pods] == [0] * nodes, [log.read_text() for log in logs]
    assert f"Starting with {nodes} processes" in logs[0].read_text()
    assert DistilledSet.load(run).manifest.step == 2


def test_the_pods_that_prepare_leave_the_caches_of_one_process(tmp_path, monkeypatch):
    """Each pod with the index that the Job's controller gives it."""
    _, job = documents(ROOT / "cluster" / "kubernetes_prepare.yaml")
    spec = job["spec"]
    assert (spec["parallelism"], spec["completionMode"]) == (spec["completions"], "Indexed")
    words = [word for word in arguments(spec["template"]["spec"]) if not word.startswith("--data")]
    assert words == ["prepare", f"--part=auto/{spec['completions']}"]
    monkeypatch.chdir(ROOT)
    digits = ("--data=configs/data/digits.yaml", "--data.image_size=8")
    for name in ("pods", "at once"):
        cache = f"--data.cache_dir={tmp_path / name}"
        for index in range(spec["completions"] if name == "pods" else 1):
            monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
            assert cli.main([*words[: 1 + (name == "pods")], *digits, cache]) == 0
    found = [
        {path.name: sha256(path) for path in (tmp_path / name).iterdir()} for name in ("pods", "at once")
    ]
    assert len(found[0]) == 6
    assert found[0] == found[1]


def test_the_pods_of_sub_tasks_make_one_federation(tiny_prior_path, tmp_path, monkeypatch):
    """Planned, each index by itself, merged: the same bytes as the one command that does all."""
    jobs = {
        job["metadata"]["name"]: job for job in documents(ROOT / "cluster" / "kubernetes_subtasks.yaml")[1:]
    }
    plan, subtasks, merge = (jobs[f"latentdd-{step}"]["spec"] for step in ("plan", "subtasks", "merge"))
    words = arguments(plan["template"]["spec"])
    assert f"--subtasks={subtasks['completions']}" in words
    assert (subtasks["parallelism"], subtasks["completionMode"]) == (subtasks["completions"], "Indexed")
    monkeypatch.chdir(ROOT)
    for name in ("pods", "at once"):
        out = tmp_path / name
        first = small(words, tiny_prior_path, out=out, subtasks=2)
        if name == "at once":
            assert cli.main([word for word in first if not word.startswith("--engine")]) == 0
            break
        assert cli.main(first) == 0
        assert not (out / "subtasks").exists()
        for index in range(2):
            assert (
                cli.main(small(arguments(subtasks["template"]["spec"], index), tiny_prior_path, out=out)) == 0
            )
        assert cli.main(small(arguments(merge["template"]["spec"]), tiny_prior_path, out=out)) == 0
    images = [sha256(tmp_path / name / "distilled" / "images.safetensors") for name in ("pods", "at once")]
    assert images[0] == images[1]
