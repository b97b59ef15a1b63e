"""compose.yaml, the images and the Kubernetes manifests, as far as they can be judged without a container.

What runs in them runs for real in tests/services/test_serve.py.
"""

import json
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from infra import secrets, serve
from infra.local import s3
from infra.local.place import PORTS, Place
from meca.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DOCKERFILE = (INFRA / "Dockerfile").read_text()
MANIFESTS = sorted((INFRA / "kubernetes").glob("*/*.yaml"))
KUBERNETES = [tree for file in MANIFESTS if file.name != "kustomization.yaml" for tree in yaml.safe_load_all(file.read_text())]
KUSTOMIZATIONS = {file.parent.name: yaml.safe_load(file.read_text()) for file in MANIFESTS if file.name == "kustomization.yaml"}
PODS = {tree["metadata"]["name"]: tree["spec"]["template"] for tree in KUBERNETES if "template" in tree.get("spec", {})}
OURS = ("s3", "migrate", "mlflow", "prefect", "prefect-services", "worker")
PUBLISHED = {"s3": PORTS["s3-proxy"], "mlflow": PORTS["mlflow"], "prefect": PORTS["prefect"]}


def given(name):
    """Return the secrets that a pod mounts."""
    volumes = PODS[name]["spec"]["volumes"]
    return [item["key"] for volume in volumes if "secret" in volume for item in volume["secret"]["items"]]


def strings(tree):
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from ((f"{name}: {text}" if isinstance(text, str) else text) for text in strings(value))
    elif isinstance(tree, list):
        for value in tree:
            yield from strings(value)
    elif isinstance(tree, str):
        yield tree


# The images.


def test_an_image_starts_from_an_exact_version_and_ends_without_root():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    assert re.search(r"ARG PYTHON=python:\d+\.\d+\.\d+-", stages[0])
    targets = {stage.split(" AS ")[1].split()[0]: stage for stage in stages[1:]}
    assert set(targets) == {"base", "servers", "worker"}
    for name in ("servers", "worker"):
        users = re.findall(r"^USER (\S+)", targets[name], flags=re.MULTILINE)
        assert users == ["10001:10001"]
        assert targets[name].index("USER") > targets[name].rindex("RUN")
        assert "--require-hashes" in targets[name] and 'ENTRYPOINT ["python", "-m", "infra.serve"]' in targets[name]
    assert {SERVICES[name]["build"]["target"] for name in OURS} == {"servers", "worker"}


def test_what_an_image_copies_is_there_and_nothing_else_reaches_the_build():
    copied = [word for line in re.findall(r"^COPY (.+)$", DOCKERFILE, flags=re.MULTILINE) for word in line.split()[:-1]]
    assert len(copied) > 8
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in copied:
        assert (ROOT / name).exists(), name
        assert any(name == known or name.startswith(f"{known}/") for known in allowed), name
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"
    assert not re.search(r"^ADD |curl|wget|--privileged|password|token", DOCKERFILE, flags=re.MULTILINE | re.IGNORECASE)


def versions(lock):
    return dict(re.findall(r"^([a-z0-9][\w.-]*)==([^\s;]+)", (ROOT / lock).read_text(), flags=re.MULTILINE))


def test_servers_and_clients_are_of_the_same_versions():
    ours, theirs = versions("requirements.lock"), versions("infra/servers.lock")
    assert {"mlflow", "prefect", "prefect-redis", "psycopg2-binary", "flask-wtf", "boto3", "asyncpg", "psutil"} <= set(theirs)
    assert "torch" not in theirs
    assert {name: version for name, version in theirs.items() if ours.get(name, version) != version} == {}


@pytest.mark.parametrize("lock", ["requirements.lock", "infra/servers.lock", "infra/local/swift.lock"])
def test_a_lock_has_a_hash_for_everything_and_no_address(lock):
    text = (ROOT / lock).read_text()
    assert "--index-url" not in text and "://" not in text and "--find-links" not in text
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 10
    assert [entry.split("==")[0] for entry in entries if "--hash=sha256:" not in entry] == []


# compose.yaml


def test_compose_publishes_on_this_machine_only_and_at_the_usual_ports():
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {name: [f"127.0.0.1:{port}:{port}"] for name, port in PUBLISHED.items()}


def test_compose_runs_our_images_closed():
    for name in OURS:
        service = SERVICES[name]
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
        assert service["command"] == [name] and "user" not in service and not service.get("privileged")


def test_compose_waits_in_the_right_order():
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            known = SERVICES[other]
            assert how["condition"] == "service_completed_successfully" if other == "migrate" else "healthcheck" in known, (name, other)
    for name in ("mlflow", "prefect", "prefect-services"):
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    for name, port in PUBLISHED.items():
        assert f"127.0.0.1:{port}/" in SERVICES[name]["healthcheck"]["test"][-1]


def test_compose_takes_its_secrets_from_files_that_are_made():
    assert set(COMPOSE["secrets"]) == set(secrets.NAMES)
    assert {name: entry["file"] for name, entry in COMPOSE["secrets"].items()} == {name: f"../.meca/team/files/{name}" for name in secrets.NAMES}


@pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="docker-compose is not installed; the tests above look at the same file without it"
)
def test_compose_is_accepted_by_docker_compose(tmp_path):
    # Debian's version is older than the key `name`.
    tree = {key: value for key, value in COMPOSE.items() if key != "name"}
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(tree))
    done = subprocess.run(["docker-compose", "-f", "compose.yaml", "config", "--quiet"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_secret_of_the_seals_outlives_the_worker_and_lies_apart_from_the_data():
    place = re.search(r"MECA_STATE_DIR=(\S+)", DOCKERFILE[DOCKERFILE.index("AS worker") :])
    assert place and place[1] == "/seals/meca" and " /seals " in DOCKERFILE
    assert "seals:/seals" in SERVICES["worker"]["volumes"] and "seals" in COMPOSE["volumes"]
    spec = PODS["worker"]["spec"]
    mounts, volumes = ({item["name"]: item for item in items} for items in (spec["containers"][0]["volumeMounts"], spec["volumes"]))
    assert mounts["seals"]["mountPath"] == "/seals" and volumes["seals"]["persistentVolumeClaim"]["claimName"] == "meca-seals"
    assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch", "else a new pod finds a secret that its group may read"


# Kubernetes


def test_every_manifest_is_part_of_a_kustomization_and_has_a_name():
    assert set(KUSTOMIZATIONS) == {"stores", "migrate", "servers"}
    for folder, tree in KUSTOMIZATIONS.items():
        files = {file.name for file in (INFRA / "kubernetes" / folder).glob("*.yaml")} - {"kustomization.yaml"}
        assert set(tree["resources"]) == files and tree["namespace"] == "meca"
    names = [(tree["kind"], tree["metadata"]["name"]) for tree in KUBERNETES]
    assert len(names) == len(set(names)) > 15
    assert all(tree["apiVersion"] for tree in KUBERNETES)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed; the tests above look at the same manifests without it")
@pytest.mark.parametrize("folder", sorted(KUSTOMIZATIONS))
def test_kustomize_builds_it(folder):
    done = subprocess.run(["kubectl", "kustomize", str(INFRA / "kubernetes" / folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert {tree["metadata"].get("namespace", "meca") for tree in built} == {"meca"}
    images = [c["image"] for tree in built if "template" in tree.get("spec", {}) for c in tree["spec"]["template"]["spec"]["containers"]]
    assert images and all(re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*", image) for image in images)


@pytest.mark.parametrize("name", sorted(PODS))
def test_a_pod_runs_without_root_and_without_rights(name):
    spec = PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
    assert not any(key in spec for key in ("hostNetwork", "hostPID", "hostIPC"))
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert not [volume for volume in volumes.values() if "hostPath" in volume]
    for container in spec["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True and context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"] and set(container["resources"]["requests"]) == {"cpu", "memory"}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == set(volumes) | ({"data"} if name in ("postgres", "redis", "s3") else set())
    for volume in volumes.values():
        if "secret" in volume:
            assert volume["secret"]["secretName"] == "meca-servers" and volume["secret"]["defaultMode"] == 0o440
            assert {item["key"] for item in volume["secret"]["items"]} <= set(secrets.NAMES)


def test_a_service_finds_its_pods_and_a_policy_names_pods_that_exist():
    found = {tree["metadata"]["name"]: tree["spec"] for tree in KUBERNETES if tree["kind"] == "Service"}
    assert set(found) == {"postgres", "redis", *PUBLISHED}
    for name, spec in found.items():
        assert spec["selector"] == {"app": name} == PODS[name]["metadata"]["labels"]
        (port,) = spec["ports"]
        assert [{"containerPort": port["targetPort"]}] == PODS[name]["spec"]["containers"][0]["ports"]
        assert port["port"] == {**PUBLISHED, "postgres": 5432, "redis": 6379}[name]
        assert serve.PLACES[f"MECA_{name.upper()}"].split("://")[-1].split("/")[0] == f"{name}:{port['port']}"
    policies = [tree["spec"] for tree in KUBERNETES if tree["kind"] == "NetworkPolicy"]
    assert {"podSelector": {}, "policyTypes": ["Ingress"]} in policies
    for name in re.findall(r"values: \[([^\]]+)\]", (INFRA / "kubernetes/stores/network.yaml").read_text()):
        assert set(name.split(", ")) <= set(PODS)
    # Whoever connects to a store is let in: those that hold its password.
    for store, needed in (("postgres", {"mlflow_database", "prefect_database"}), ("redis", {"redis"})):
        policy = next(spec for spec in policies if spec["podSelector"] == {"matchLabels": {"app": store}})
        (let_in,) = policy["ingress"][0]["from"][0]["podSelector"]["matchExpressions"]
        holders = {name for name in PODS if name not in ("postgres", "redis", "worker") and needed & set(given(name))}
        assert set(let_in["values"]) == holders


# Both


def test_no_image_is_called_latest_and_none_is_without_a_version():
    images = {service["image"] for service in SERVICES.values()}
    assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+[\w.-]*", image) for image in images), images
    for tree in KUSTOMIZATIONS.values():
        assert all(re.fullmatch(r"\d+\.\d+\.\d+", entry["newTag"]) for entry in tree["images"])
    known = {entry["name"] for tree in KUSTOMIZATIONS.values() for entry in tree["images"]}
    for name, pod in PODS.items():
        (container,) = pod["spec"]["containers"]
        assert container["image"] in known or container["image"] == SERVICES[name]["image"]


def test_no_secret_stands_in_a_manifest():
    variables = [pair for service in SERVICES.values() for pair in service.get("environment", {}).items()]
    for pod in PODS.values():
        variables += [(entry["name"], entry["value"]) for entry in pod["spec"]["containers"][0].get("env", [])]
    assert len(variables) > 10
    for name, value in variables:
        assert re.fullmatch(r"MECA_(POSTGRES|REDIS|S3|HOSTS)|PGDATA", name) or (name.endswith("_FILE") and value.startswith("/run/secrets/")), name
    assert "Secret" not in {tree["kind"] for tree in KUBERNETES}
    told = [*strings(COMPOSE), *(text for tree in KUBERNETES for text in strings(tree))]
    assert not [text for text in told if re.search(r"://[^/\s]*:[^/\s]*@", text)]
    assert not [text for text in told if "requirepass" in text and "$(cat /run/secrets/redis)" not in text]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_a_container_holds_the_secrets_that_its_role_needs_and_no_other(name, where, tmp_path, monkeypatch):
    held = SERVICES[name]["secrets"] if where == "compose" else given(name)
    if name == "worker" and where == "kubernetes":
        assert held == [] and PODS["worker"]["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "meca"}}]
        return
    for missing in ("", *held):
        folder = tmp_path / f"without-{missing}"
        folder.mkdir()
        for secret in set(held) - {missing}:
            (folder / secret).write_text(f"{secret}-value\n")
        assert plays(name, folder, monkeypatch) is (missing == "")


def plays(role, folder, monkeypatch):
    """Tell whether a role finds all it needs in a folder of secrets, and uses every one of them."""
    told = []
    monkeypatch.setattr(serve, "_become", lambda argv, variables: told.append(dict(variables)))
    monkeypatch.setattr(serve, "_run", lambda argv, variables: told.append(dict(variables)))
    monkeypatch.setattr(serve, "make_databases", lambda *given: told.append(given))
    monkeypatch.setattr(serve, "make_buckets", lambda *given: told.append(given))
    monkeypatch.setenv("MECA_SECRETS", str(folder))
    monkeypatch.setenv("MECA_STATE", str(folder.parent / "state"))
    monkeypatch.setenv("MECA_WORKSPACE", str(folder.parent / "workspace"))
    (folder.parent / "workspace").mkdir(exist_ok=True)
    (folder.parent / "workspace" / "dvc.yaml").touch()
    monkeypatch.chdir(folder.parent)
    try:
        if role == "s3":
            told.append(s3.configuration(Place(folder, dict(PORTS), serve._secrets())))
        else:
            serve.ROLES[role]([])
    except (UsageError, KeyError):
        return False
    said = json.dumps(told) + "".join(file.read_text() for file in (folder.parent / "state").glob("*.ini"))
    names = set(secrets.NAMES)
    used = {file.name for file in folder.iterdir() if f"{file.name}-value" in said}
    assert used <= names
    # migrate leaves out what it is given no key for; that counts as missing here.
    expected = {"migrate": {"postgres", "mlflow_database", "prefect_database", "redis", "s3"}, "worker": {"mlflow", "prefect", "s3"}}
    return used == expected.get(role, used)


def test_secrets_are_made_once_and_closed(tmp_path):
    folder = tmp_path / "team"
    first = secrets.make(folder)
    assert set(first) == set(secrets.NAMES) and len(set(first.values())) == len(first)
    assert all(re.fullmatch(r"[0-9a-f]{48}", value) for value in first.values())
    assert secrets.make(folder) == first
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "client.env").stat().st_mode) == stat.S_IMODE((folder / "cluster.env").stat().st_mode) == 0o600
    here, there = (dict(line.split("=", 1) for line in (folder / name).read_text().splitlines()) for name in ("client.env", "cluster.env"))
    assert set(here) == set(there) and here["AWS_SECRET_ACCESS_KEY"] == there["AWS_SECRET_ACCESS_KEY"] == first["s3"]
    for name, variable in (("mlflow", "MLFLOW_TRACKING_URI"), ("prefect", "PREFECT_API_URL"), ("s3", "AWS_ENDPOINT_URL")):
        assert f"//127.0.0.1:{PUBLISHED[name]}" in here[variable] and f"//{name}:{PUBLISHED[name]}" in there[variable]
    (folder / "files" / "redis").unlink()
    again = secrets.make(folder)
    assert {name for name in first if first[name] != again[name]} == {"redis"}
