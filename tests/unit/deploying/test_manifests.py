"""Manifests are what Kubernetes', KServe's and KEDA's schemas take, and what the golden files say.

`python tests/unit/deploying/test_manifests.py` writes the golden files.
"""

import errno
import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import crds
from marship.deploying import manifests, rules
from marship.deploying.settings import ManifestSettings
from marship.deploying.template import text
from marship.errors import PackageError, SignatureError, StorageError, UsageError
from marship.trust import archive as archives
from marship.trust import signature
from marship.trust.archive import Member
from signed import FILES, make_key, trusting, write

GOLDEN = Path(__file__).with_name("golden")
IMAGE = "registry.example/models/lin:1.0"
DIGEST = f"sha256:{'0' * 64}"
BASE = ManifestSettings(image=IMAGE)
KEDA = {"scaler": "keda", "prometheus": "http://prometheus.monitoring:9090"}
CASES: dict[str, dict[str, Any]] = {
    "hpa": {},
    "keda": {**KEDA, "namespace": "models", "clients": ("web",), "workers": 2, "cpu": "1500m"},
    "fixed": {"scaler": "none", "replicas": 1, "memory": "1Gi", "name": "other"},
    "fetched": {"scaler": "cpu", "fetch_from": "https://models.example/store"},
    "kserve": {**KEDA, "kserve": True, "storage": "pvc://models/lin"},
    "kserve-cpu": {"scaler": "cpu", "kserve": True, "storage": "oci://registry.example/lin:1"},
}
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
"""RFC 1123, as Kubernetes writes it."""


def written(folder: Path, **changed: Any) -> list[dict[str, Any]]:
    """The objects that are written for one archive."""
    archive = write(folder / "lin.mar")
    done = manifests.write(replace(BASE, out=folder / "out", **changed), [archive])
    return [yaml.safe_load(file.read_text()) for file in done.files]


def check(objects: list[dict[str, Any]]) -> None:
    """Hold objects against the published schemas; a field that is not known is refused."""
    for value in objects:
        if value["kind"] in crds.SCHEMAS:
            crds.check(value)
        elif value["kind"] != "Kustomization":
            kubernetes_validate.validate(value, "1.37", strict=True)
        if value["kind"] == "ClusterServingRuntime":
            spec = {key: value["spec"][key] for key in ("containers", "volumes")}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}
            kubernetes_validate.validate(pod, "1.37", strict=True)


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_as_their_golden_file(case: str, tmp_path: Path) -> None:
    """And pass the schemas."""
    objects = written(tmp_path, **CASES[case])
    check(objects)
    assert objects == list(yaml.safe_load_all((GOLDEN / f"{case}.yaml").read_text()))


def test_a_schema_finds_what_is_wrong(tmp_path: Path) -> None:
    """An unknown field and a wrong type, in both kinds of schema."""
    deployment, *_ = written(tmp_path)
    deployment["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        check([deployment])
    (tmp_path / "k").mkdir()
    _, service, _ = written(tmp_path / "k", **CASES["kserve"])
    service["spec"]["predictor"]["minReplicas"] = "2"
    with pytest.raises(crds.jsonschema.ValidationError):
        check([service])


def test_pods_are_restricted(tmp_path: Path) -> None:
    """As the restricted profile of Pod Security Standards asks, and with a read-only root."""
    deployment, *_ = written(tmp_path)
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    grace = int(container["args"][container["args"].index("--grace-s") + 1])
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > grace + pause
    written_to = [
        mount["mountPath"] for mount in container["volumeMounts"] if "readOnly" not in mount
    ]
    assert written_to == ["/run/marship"]


REFUSED = [
    ({"image": None}, "must be REGISTRY/NAME"),
    ({"image": "registry.example/lin"}, "tag other than latest"),
    ({"image": "registry.example/lin:latest"}, "tag other than latest"),
    ({"image": "registry.example/Lin:1"}, "must be REGISTRY/NAME"),
    ({"name": "My_Model"}, "--name my-model"),
    ({"name": "a" * 64}, "63 characters"),
    ({"name": "1st"}, "begin with a letter"),
    ({"namespace": "A b"}, "got 'A b'. Take --namespace a-b."),
    ({"namespace": "a-"}, "with no - at an end"),
    ({"clients": ("Web",)}, "--clients web."),
    ({"monitoring": "m" * 64}, "--monitoring must be of"),
    ({"token_secret": "Secret!"}, "Secret"),
    ({"replicas": 9}, "--max-replicas at most"),
    ({"scaler": "vpa"}, "--scaler must be one of"),
    ({"scaler": "keda"}, "--prometheus must be http"),
    ({"cpu": "0"}, "cpu must be"),
    ({"cpu": "one"}, "cpu must be"),
    ({"memory": "2GB"}, "memory must be"),
    ({"memory": "100Mi"}, "memory must be 320Mi"),
    ({"gpus": 1}, "must ask for cuda"),
    ({"fetch_from": "ftp://x"}, "--fetch-from must be http"),
    ({"fetch_from": "http://[::1"}, "--fetch-from must be http"),
    ({"fetch_from": "https://x:70000/"}, "--fetch-from must be http"),
    ({"fetch_from": "https://x:0/"}, "--fetch-from must be http"),
    ({"fetch_from": "https://x y/"}, "--fetch-from must be http"),
    ({"fetch_from": "https://me:secret@x/"}, "no password, since files and images show it, got"),
    ({"fetch_from": "https://token@x/"}, "--fetch-from must hold no user name"),
    ({"scaler": "keda", "prometheus": "http://a:b@x"}, "--prometheus must hold no user name"),
    ({"kserve": True, "scaler": "cpu", "storage": "s3://a:b@x/y"}, "storage must hold no user"),
    ({"scaler": "keda", "prometheus": "http://[::1"}, "--prometheus must be http"),
    ({"kserve": True, "scaler": "cpu", "storage": "pvc://[x"}, "--storage pvc"),
    ({"kserve": True, "scaler": "cpu", "storage": "pvc://My_Claim/x"}, "--storage pvc"),
    ({"token_secret": "a.-b"}, "Secret"),
    ({"token_secret": "a-.b"}, "Secret"),
    ({"cpu": "\u0661"}, "cpu must be"),
    ({"memory": "\u0665Gi"}, "memory must be"),
    ({"memory": "9999999999Gi"}, "memory must be"),
    ({"kserve": True, "scaler": "cpu"}, "--storage pvc"),
    ({"kserve": True, "storage": "pvc://x/y"}, "got hpa"),
]


@pytest.mark.parametrize(("changed", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_kubernetes_would_refuse_is_not_written(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """One line says what to do, and no file is there."""
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        written(tmp_path, **changed)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["replicas", "max_replicas", "workers", "gpus", "start_s", "grace_s"]
)
@pytest.mark.parametrize("value", [-1, 1 << 31])
def test_counts_have_bounds(name: str, value: int) -> None:
    """A Deployment of less than one pod serves nobody, and Kubernetes counts in int32."""
    with pytest.raises(UsageError, match=name):
        replace(BASE, **{name: value})


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("https://x/store", 443), ("HTTPS://x", 443), ("http://x", 80),
        ("https://x:8443/store", 8443), ("http://[::1]:81/", 81),
    ],
)  # fmt: skip
def test_pods_may_reach_where_they_fetch_from(url: str, port: int, tmp_path: Path) -> None:
    """The port of the URL, and names; nothing else."""
    (policy,) = [one for one in written(tmp_path, fetch_from=url) if one["kind"] == "NetworkPolicy"]
    ports = [each["port"] for rule in policy["spec"]["egress"] for each in rule["ports"]]
    assert ports == [53, 53, port]


def test_the_number_of_fixed_pods_has_no_other_bound(tmp_path: Path) -> None:
    """`--max-replicas` is that of a scaler."""
    deployment, *_ = written(tmp_path, scaler="none", replicas=20)
    assert deployment["spec"]["replicas"] == 20


def test_another_scaler_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """Both would scale one Deployment; what marship did not write stays."""
    written(tmp_path)
    (tmp_path / "out" / "lin" / "own.yaml").write_text("kind: ConfigMap\n")
    written(tmp_path, **KEDA)
    names = {path.name for path in (tmp_path / "out" / "lin").iterdir()}
    assert "scaledobject.yaml" in names
    assert "horizontalpodautoscaler.yaml" not in names
    assert "own.yaml" in names


@pytest.mark.parametrize(
    "own", ["kustomization.yaml", "lin/deployment.yaml", "lin/service.yaml/x", "lin"]
)
def test_files_that_may_be_the_users_are_left_alone(own: str, tmp_path: Path) -> None:
    """Whatever they are called; and nothing is written beside them."""
    path = tmp_path / "out" / own
    path.parent.mkdir(parents=True)
    path.write_text("kind: ConfigMap\n")
    with pytest.raises(UsageError, match="Choose another folder with --out"):
        written(tmp_path)
    assert [one for one in (tmp_path / "out").rglob("*") if one.is_file()] == [path]
    assert path.read_text() == "kind: ConfigMap\n"


def test_a_model_that_is_left_out_is_no_longer_there(tmp_path: Path) -> None:
    """Nothing lists its objects any more; what marship did not write there stays."""
    out = replace(BASE, out=tmp_path / "out")
    both = [write(tmp_path / f"{name}.mar", model=name) for name in ("a", "b", "c")]
    manifests.write(out, both)
    (tmp_path / "out" / "c" / "own.yaml").write_text("kind: ConfigMap\n")
    manifests.write(replace(BASE, out=tmp_path / "out" / "prod"), both[1:])
    manifests.write(out, both[:1])
    held = sorted(str(path.relative_to(tmp_path / "out")) for path in tmp_path.glob("out/*/*.yaml"))
    assert [path for path in held if not path.startswith("a/")] == [
        "c/own.yaml", "prod/kustomization.yaml",
    ]  # fmt: skip
    assert (tmp_path / "out" / "prod" / "b" / "deployment.yaml").exists()
    assert not (tmp_path / "out" / "b").exists()


def test_manifests_are_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk leaves those that were there."""
    written(tmp_path)
    out = tmp_path / "out"
    held = {path: path.is_file() and path.read_bytes() for path in out.rglob("*")}

    def full(value: dict[str, Any], note: str) -> str:
        if value["kind"] == "NetworkPolicy":
            raise OSError(errno.ENOSPC, "no space left")
        return text(value, note)

    monkeypatch.setattr(manifests, "text", full)
    with pytest.raises(StorageError, match="fit on the disk"):
        written(tmp_path, scaler="cpu")
    assert {path: path.is_file() and path.read_bytes() for path in out.rglob("*")} == held


def test_a_namespace_may_be_digits(tmp_path: Path) -> None:
    """As Kubernetes takes it: a name of a Service may not."""
    objects = written(tmp_path, namespace="2024")
    assert {value["metadata"]["namespace"] for value in objects[:-1]} == {"2024"}


def test_load_is_that_of_the_namespace(tmp_path: Path) -> None:
    """The same model in another one has a load of its own."""
    *_, scaler, _ = written(tmp_path, **KEDA, namespace="models")
    query = scaler["spec"]["triggers"][0]["metadata"]["query"]
    assert query.count(',namespace="models"}') == query.count("rate(") == 3


def test_a_gpu_is_given_to_models_that_ask_for_one(tmp_path: Path) -> None:
    """And a model that asks gets no pod without."""
    config = {"model-config.yaml": b"marship:\n  providers: [cuda, cpu]\n"}
    archive = write(tmp_path / "lin.mar", {**FILES, **config})
    with pytest.raises(UsageError, match="--gpus 1"):
        manifests.write(replace(BASE, out=tmp_path / "out"), [archive])
    done = manifests.write(replace(BASE, out=tmp_path / "out", gpus=1), [archive])
    deployment = yaml.safe_load(done.files[0].read_text())
    check([deployment])
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_a_sealed_model_needs_its_key(tmp_path: Path) -> None:
    """From a Secret, as a variable: a mounted file would be readable by a group."""
    one = archives.read(write(tmp_path / "lin.mar"))
    member = Member("model.onnx.sealed", 1, "")
    one = replace(one, members=(member,))
    with pytest.raises(UsageError, match="--seal-secret"):
        manifests.environment(BASE, one)
    (variable,) = manifests.environment(replace(BASE, seal_secret="seal"), one)
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "seal", "key": "key"}}


def test_archives_are_read_first(tmp_path: Path) -> None:
    """What is no archive, is unsigned where keys are pinned, or comes twice, is refused."""
    (tmp_path / "junk.mar").write_bytes(b"junk")
    archive = write(tmp_path / "lin.mar")
    (tmp_path / "more").mkdir()
    other = write(tmp_path / "more" / "lin.mar", model="other")
    spaced = write(tmp_path / "a b.mar")
    key = make_key(tmp_path / "keys")
    pinned = replace(BASE, out=tmp_path / "out", trust=trusting(tmp_path / "trust", key).folder)
    for paths, chosen, kind in [
        ([tmp_path / "junk.mar"], BASE, PackageError),
        ([archive], pinned, SignatureError),
        ([archive, archive], BASE, UsageError),
        ([archive, other], BASE, UsageError),
        ([spaced], replace(BASE, fetch_from="https://x"), UsageError),
        ([tmp_path / "none.mar"], BASE, UsageError),
    ]:
        with pytest.raises(kind):
            manifests.write(replace(chosen, out=tmp_path / "out"), paths)
        assert not (tmp_path / "out").exists()
    signature.sign(archive, key)
    assert manifests.write(pinned, [archive]).models == ("lin",)


NAMES = st.one_of(
    st.text(st.sampled_from("ab0-._A"), max_size=70), st.from_regex(r"[a-z][a-z0-9-]{0,80}")
)
CHOICES = st.fixed_dictionaries(
    {
        "name": NAMES,
        "namespace": st.none() | NAMES,
        "token_secret": st.none() | NAMES,
        "cpu": st.from_regex(r"\d{1,3}(\.\d{1,4})?[mk]?", fullmatch=True),
        "memory": st.from_regex(r"\d{1,4}([KMGT]i?|[km])?", fullmatch=True),
        "replicas": st.integers(1, 20),
        "max_replicas": st.integers(1, 20),
    }
)


@settings(max_examples=60, deadline=None)
@given(chosen=CHOICES, case=st.sampled_from(sorted(CASES)))
def test_any_settings_are_refused_or_give_valid_objects(chosen: dict[str, Any], case: str) -> None:
    """Whatever is typed: no object that Kubernetes would refuse."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            objects = written(Path(folder), **{**CASES[case], **chosen})
        except UsageError:
            return
        check(objects)
    for value in objects[:-1]:
        for found in (value["metadata"]["name"], value["metadata"].get("namespace", "a")):
            assert LABEL.fullmatch(found)
    assert chosen["replicas"] <= chosen["max_replicas"]
    assert re.fullmatch(r"[0-9]+m|[0-9]+(\.[0-9]+)?", chosen["cpu"])


@pytest.mark.parametrize(
    ("image", "is_right"),
    [
        ("lin:1", True), ("a.b:5000/x/y__z:v1", True), (f"lin@{DIGEST}", True),
        (f"r.io/lin:1@{DIGEST}", True), ("lin", False), ("r.io:5000/lin", False), ("", False),
        ("lin:1 ", False), ("-lin:1", False), ("lin:1\n", False), (f"lin@{DIGEST}0", False),
    ],
)  # fmt: skip
def test_references_to_images(image: str, is_right: bool) -> None:
    """As the OCI distribution specification writes them."""
    if is_right:
        rules.check_image(image)
    else:
        with pytest.raises(UsageError):
            rules.check_image(image)


def write_golden() -> None:
    """Write all golden files."""
    for case, changed in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            objects = written(Path(folder), **changed)
        check(objects)
        text = yaml.safe_dump_all(objects, sort_keys=False, width=100)
        (GOLDEN / f"{case}.yaml").write_text(text)


if __name__ == "__main__":
    sys.exit(write_golden())
