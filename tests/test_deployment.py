"""The image recipe and the manifests in `examples/` fit together, and fit the proxy."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import click
from click.core import ParameterSource
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

from sglang_cached_addon import __version__
from sglang_cached_addon.admin import routes
from sglang_cached_addon.cli import main
from sglang_cached_addon.proxy.checks import normal_url
from sglang_cached_addon.proxy.lifetime import HANG_UP_SECONDS
from sglang_cached_addon.proxy.start import FLAGS
from tests.conftest import Proxy
from tests.tables import each

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
(DRAIN,) = (float(str(flag.default)) for flag in FLAGS if flag.long == "--drain")
STOP_SECONDS = DRAIN + HANG_UP_SECONDS
"""How long a proxy may take to end."""


def read(name: str) -> list[Any]:
    """The documents of a file, as YAML 1.1: to Kubernetes, a bare `yes` is true."""
    found = []
    for text in re.split(r"^---$", (EXAMPLES / name).read_text(), flags=re.M):
        yaml = YAML(typ="safe", pure=True)
        yaml.version = (1, 1)  # of one document
        found.append(yaml.load(text))
    return [document for document in found if document is not None]


def instructions(name: str) -> Iterator[str]:
    """What the image recipe says at an instruction."""
    for line in (EXAMPLES / "Containerfile").read_text().splitlines():
        if line.startswith(f"{name} "):
            yield line.removeprefix(f"{name} ")


(PYTHON,) = instructions("FROM")
(USER,) = instructions("USER")
(FOLDER,) = instructions("VOLUME")
(PORT,) = map(int, instructions("EXPOSE"))
(ENTRYPOINT,) = map(json.loads, instructions("ENTRYPOINT"))
(HEALTH_CHECK,) = instructions("HEALTHCHECK")
IMAGE_ENV = dict(pair.split("=") for line in instructions("ENV") for pair in line.split())

(COMPOSE,) = read("compose.yaml")
SERVICES = COMPOSE["services"]
NGINX = COMPOSE["configs"]["nginx"]["content"]

MANIFESTS = read("kubernetes.yaml")
WORKLOADS = {m["metadata"]["name"]: m for m in MANIFESTS if "template" in m.get("spec", {})}
PODS = {name: workload["spec"]["template"]["spec"] for name, workload in WORKLOADS.items()}
CONTAINERS = {name: pod["containers"][0] for name, pod in PODS.items()}
PROXY = CONTAINERS["sglang-cached"]


def named(kind: str) -> dict[str, Any]:
    """The manifests of a kind."""
    return {m["metadata"]["name"]: m for m in MANIFESTS if m["kind"] == kind}


def selected(selector: Mapping[str, str]) -> list[str]:
    """The workloads whose pods have these labels."""
    labels = {name: w["spec"]["template"]["metadata"]["labels"] for name, w in WORKLOADS.items()}
    return [name for name in labels if selector.items() <= labels[name].items()]


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def number(quantity: str) -> int:
    """Bytes, by `2g`, `4gb`, or `6Gi`."""
    found = re.fullmatch(r"(\d+)(?:g|gb|Gi)", quantity)
    assert found
    return int(found[1]) << 30  # which a gigabyte is to Docker and Redis, too


def option(arguments: Sequence[str], name: str) -> str:
    """What a command line gives to an option."""
    return arguments[arguments.index(name) + 1]


# The image


def test_python_of_the_image() -> None:
    """It is one that the package is for."""
    version = re.fullmatch(r"python:([\d.]+)-slim", PYTHON)
    assert version
    assert version[1] in SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert f"Programming Language :: Python :: {version[1]}" in PYPROJECT["project"]["classifiers"]


def test_image_is_given_what_the_build_takes() -> None:
    """Nothing that the package is made of is missing, or kept back by `.dockerignore`."""
    copied = {source for line in instructions("COPY") for source in line.split()[:-1]}
    project, wheel = PYPROJECT["project"], PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"], *wheel["packages"]}
    assert copied == needed
    assert all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_image_has_the_client_of_redis() -> None:
    """The extra that is asked for exists."""
    (install,) = (line for line in instructions("RUN") if line.startswith("pip install "))
    extras = re.search(r"'\.\[([a-z,]+)\]'$", install)
    assert extras
    assert extras[1].split(",") == ["redis"]
    assert "redis" in PYPROJECT["project"]["optional-dependencies"]


def test_image_is_not_root() -> None:
    """The user is a number that exists, and owns the one folder that is written to."""
    uid, gid = USER.split(":")
    assert uid == gid != "0"
    (added,) = (line.split() for line in instructions("RUN") if line.startswith("useradd "))
    assert option(added, "--uid") == uid
    assert option(added, "--home-dir") == IMAGE_ENV["HOME"] == FOLDER
    assert "--create-home" in added
    assert added[-1] == ENTRYPOINT[0]  # Debian has a user named `proxy`


def test_image_starts_the_proxy() -> None:
    """No shell is in between, which keeps SIGTERM to itself."""
    command, name = ENTRYPOINT
    assert PYPROJECT["project"]["scripts"][command] == "sglang_cached_addon.cli:main"
    assert name in main.commands


def check_health(port: int) -> int:
    """The exit code of the image's health check, where the network has a proxy of its own."""
    python, *code = json.loads(HEALTH_CHECK.partition(" CMD ")[2])
    assert python == "python"
    code[-1] = code[-1].replace(f":{PORT}/", f":{port}/")
    assert f":{port}/" in code[-1]
    env = {**os.environ, "http_proxy": "http://127.0.0.1:1", "no_proxy": ""}
    return subprocess.run([sys.executable, *code], env=env, stderr=subprocess.DEVNULL).returncode


def test_health_check(proxy: Proxy) -> None:
    """It is content with a proxy, and only while it lives."""
    port = urlsplit(proxy.url).port
    assert port
    assert check_health(port) == 0
    proxy.stop()
    assert check_health(port) == 1


# Command lines

COMMAND_LINES = {
    "compose": (SERVICES["proxy"]["command"], list(SERVICES["proxy"]["environment"])),
    "kubernetes": (PROXY["args"], [variable["name"] for variable in PROXY["env"]]),
}
PLACES = {
    "compose": {
        "sglang": int(option(SERVICES["sglang"]["command"], "--port")),
        "redis": 6379,
    },
    "kubernetes": {
        name: service["spec"]["ports"][0]["port"] for name, service in named("Service").items()
    },
}
"""Which names there are, and where they listen."""


def understood(arguments: Sequence[str], env: Mapping[str, str]) -> click.Context:
    """What the image makes of its arguments, in this environment; raises where it refuses them."""
    command = main.commands[ENTRYPOINT[1]]
    with mock.patch.dict(os.environ, {**IMAGE_ENV, **env}, clear=True):
        # Within its group, as the program does it: click remembers the names of options.
        group = click.Context(main, info_name=ENTRYPOINT[0], **main.context_settings)
        return command.make_context(ENTRYPOINT[1], list(arguments), parent=group)


@each("where", COMMAND_LINES)
def test_command_line(where: str) -> None:
    """The proxy takes it, listens where it is looked for, and asks where somebody is."""
    arguments, names = COMMAND_LINES[where]
    context = understood(arguments, dict.fromkeys(names, "from the environment"))
    asked = context.params
    assert (asked["host"], asked["port"]) == ("0.0.0.0", PORT)
    # Who names a folder gets all answers there, too, and nobody looks how large it grows.
    assert context.get_parameter_source("cache_path") is ParameterSource.DEFAULT
    assert asked["admin_token"] == "from the environment"
    upstream, store = urlsplit(normal_url(asked["sglang_url"])), urlsplit(asked["store"])
    assert (upstream.hostname, store.hostname, store.scheme) == ("sglang", "redis", "redis")
    assert PLACES[where]["sglang"] == upstream.port
    assert PLACES[where]["redis"] == store.port


@each("where", COMMAND_LINES)
def test_environment_is_read(where: str) -> None:
    """Each variable is that of an option."""
    known = {parameter.envvar for parameter in main.commands[ENTRYPOINT[1]].params}
    assert {*COMMAND_LINES[where][1], *IMAGE_ENV} - {"HOME"} <= known


def test_command_line_in_the_recipe() -> None:
    """What its comment shows works, too."""
    text = (EXAMPLES / "Containerfile").read_text()
    (line,) = re.findall(r"^# +docker run (.*)$", text, re.M)
    options, _, arguments = line.partition(" sglang-cached ")
    asked = understood(shlex.split(arguments), {}).params
    assert asked["port"] == PORT
    assert f"-p {PORT}:{PORT} " in options
    assert asked["cache_path"].replace("~", IMAGE_ENV["HOME"]).startswith(f"{FOLDER}/")
    assert f":{FOLDER}" in options


@each("name", CONTAINERS)
def test_words_are_text(name: str) -> None:
    """Numbers and truths among arguments are refused."""
    container = CONTAINERS[name]
    words = [
        *SERVICES[name if name in SERVICES else "proxy"]["command"],
        *container.get("command", []),
        *container["args"],
    ]
    assert all(isinstance(word, str) for word in words)


def test_memory_is_limited() -> None:
    """A proxy takes a quarter of what there is: without a limit, of the machine's, each of them."""
    assert number(SERVICES["proxy"]["deploy"]["resources"]["limits"]["memory"])
    assert number(PROXY["resources"]["limits"]["memory"])


def test_redis_is_the_same() -> None:
    """What is true of one is true of the other."""
    assert SERVICES["redis"]["command"] == CONTAINERS["redis"]["args"]
    assert SERVICES["redis"]["image"] == CONTAINERS["redis"]["image"]
    policy = option(SERVICES["redis"]["command"], "--maxmemory-policy")
    assert policy == "allkeys-lru"  # any other refuses answers when it is full


# Compose


def test_compose_names() -> None:
    """All that is referred to exists."""
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            has_check = "healthcheck" in SERVICES[name] or name == "proxy"  # the image's own
            assert has_check or how["condition"] != "service_healthy"
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]
    build = SERVICES["proxy"]["build"]
    context = (EXAMPLES / build["context"]).resolve()
    assert context == ROOT.resolve()
    assert (context / build["dockerfile"]).samefile(EXAMPLES / "Containerfile")


def test_compose_lets_answers_finish() -> None:
    """Docker kills what has not ended by then."""
    assert seconds(SERVICES["proxy"]["stop_grace_period"]) > STOP_SECONDS


def test_compose_has_a_folder_for_each_proxy() -> None:
    """Each proxy has a volume of its own: a folder belongs to one at a time."""
    assert SERVICES["proxy"]["deploy"]["replicas"] > 1
    assert "volumes" not in SERVICES["proxy"]


def test_balancer() -> None:
    """It sends to the proxies what comes to the published port."""
    assert not re.search(r"(?<!\$)\$(\$\$)*(?!\$)", NGINX), "Compose would fill this in"
    config = re.sub(r"#.*", "", NGINX).replace("$$", "$")
    assert config.count("{") == config.count("}")
    assert f"server proxy:{PORT} resolve;" in config
    (port,) = SERVICES["balancer"]["ports"]
    published, inside = port.split(":")
    assert published == str(PORT)
    assert f"listen {inside};" in config
    (upstream,) = re.findall(r"upstream (\w+) {", config)
    assert f"proxy_pass http://{upstream};" in config


@each(
    "line",
    [
        "proxy_http_version 1.1;",  # 1.0 has no streams that could be cached
        "proxy_buffering off;",  # or streams come in lumps
        "proxy_read_timeout 1h;",  # or long answers end after a minute
        "client_max_body_size 0;",  # or long prompts end at a megabyte
        "proxy_set_header Host $http_host;",  # which pages of other sites are told by
    ],
)
def test_balancer_is_not_in_the_way(line: str) -> None:
    """What goes straight to a proxy goes through it as well."""
    assert line in NGINX.replace("$$", "$")


# Kubernetes


def test_manifests_are_complete() -> None:
    """Each has a name of its own, and goes where the user says."""
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in MANIFESTS]
    assert len(names) == len(set(names))
    assert all("namespace" not in manifest["metadata"] for manifest in MANIFESTS)
    assert all(manifest["apiVersion"] for manifest in MANIFESTS)


@each("name", WORKLOADS)
def test_workload_has_its_pods(name: str) -> None:
    """And no others."""
    spec = WORKLOADS[name]["spec"]
    assert selected(spec["selector"]["matchLabels"]) == [name]
    assert spec.get("serviceName", name) in named("Service")


@each("name", named("Service"))
def test_service_has_a_workload(name: str) -> None:
    """The one of its name, at a port that it has."""
    spec = named("Service")[name]["spec"]
    assert selected(spec["selector"]) == [name]
    inside = {port["name"]: port["containerPort"] for port in CONTAINERS[name]["ports"]}
    for port in spec["ports"]:
        # Without an address of its own, a service does not translate ports.
        assert inside[port["targetPort"]] == port["port"]


def test_ports() -> None:
    """The containers listen where their manifests say."""
    ports = {name: container["ports"][0]["containerPort"] for name, container in CONTAINERS.items()}
    arguments = CONTAINERS["sglang"]["args"]
    assert ports == {
        "sglang": int(option(arguments, "--port")),
        "redis": 6379,
        "sglang-cached": PORT,
    }


@each("name", PODS)
def test_volumes_exist(name: str) -> None:
    """What is mounted is there, and what is there is mounted."""
    claims = WORKLOADS[name]["spec"].get("volumeClaimTemplates", [])
    volumes = {volume["name"] for volume in PODS[name].get("volumes", [])}
    volumes |= {claim["metadata"]["name"] for claim in claims}
    assert {mount["name"] for mount in CONTAINERS[name]["volumeMounts"]} == volumes


@each("name", PODS)
def test_no_service_links(name: str) -> None:
    """Kubernetes sets no `SGLANG_CACHED_PORT=tcp://...`, which is an option of ours, and no
    `SGLANG_PORT`, which is one of SGLang's."""
    assert PODS[name]["enableServiceLinks"] is False


def test_secret() -> None:
    """It exists, and says nothing that everybody could read here."""
    (variable,) = PROXY["env"]
    reference = variable["valueFrom"]["secretKeyRef"]
    assert named("Secret")[reference["name"]]["stringData"] == {reference["key"]: ""}
    assert understood(PROXY["args"], {variable["name"]: ""}).params["admin_token"] == ""


@each("name", ["redis", "sglang-cached"])
def test_pod_may_do_little(name: str) -> None:
    """Who gets into it is not root, and changes nothing but its volume."""
    pod, container = PODS[name]["securityContext"], CONTAINERS[name]["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] > 0
    assert container["readOnlyRootFilesystem"] is True
    assert container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}


def test_proxy_is_who_the_image_says() -> None:
    """The user of the image writes to the folder of the image, each proxy to its own."""
    context = PODS["sglang-cached"]["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == USER
    assert [mount["mountPath"] for mount in PROXY["volumeMounts"]] == [FOLDER]
    assert [volume["emptyDir"] for volume in PODS["sglang-cached"]["volumes"]] == [{}]
    assert PROXY["image"].endswith(f"/{ENTRYPOINT[0]}:{__version__}")


@each("probe", ["readinessProbe", "livenessProbe"])
def test_probe_of_the_proxy(probe: str) -> None:
    """A route that is open to all; and patient, as a proxy is not ill because its server hangs."""
    spec = PROXY[probe]
    route = routes.find(spec["httpGet"]["path"])
    assert route
    assert "GET" in route.methods
    assert not route.is_private
    assert spec["httpGet"]["port"] in [port["name"] for port in PROXY["ports"]]


def test_proxy_may_finish() -> None:
    """It is killed no sooner than it has to be."""
    assert PODS["sglang-cached"]["terminationGracePeriodSeconds"] > STOP_SECONDS
    accepts = [word.partition("=")[2] for word in PROXY["args"] if "--drain-accept=" in word]
    assert [0 < float(seconds) < STOP_SECONDS for seconds in accepts] == [True]


def test_disruption_budget() -> None:
    """It is for the proxies, and lets nodes be emptied."""
    (budget,) = named("PodDisruptionBudget").values()
    assert selected(budget["spec"]["selector"]["matchLabels"]) == ["sglang-cached"]
    spare = budget["spec"]["maxUnavailable"]
    assert 0 < spare < WORKLOADS["sglang-cached"]["spec"]["replicas"]


def test_only_proxies_reach_redis() -> None:
    """At its one port."""
    (policy,) = named("NetworkPolicy").values()
    spec = policy["spec"]
    assert selected(spec["podSelector"]["matchLabels"]) == ["redis"]
    assert spec["policyTypes"] == ["Ingress"]
    (rule,) = spec["ingress"]
    (peer,) = rule["from"]
    assert list(peer) == ["podSelector"]
    assert selected(peer["podSelector"]["matchLabels"]) == ["sglang-cached"]
    assert rule["ports"] == [{"port": CONTAINERS["redis"]["ports"][0]["containerPort"]}]


def test_redis_has_room() -> None:
    """Above what it may store: it copies what changes while it writes its file anew, and the file
    is twice as large by then."""
    stored = number(option(CONTAINERS["redis"]["args"], "--maxmemory"))
    assert number(CONTAINERS["redis"]["resources"]["limits"]["memory"]) >= 1.25 * stored
    (claim,) = WORKLOADS["redis"]["spec"]["volumeClaimTemplates"]
    assert number(claim["spec"]["resources"]["requests"]["storage"]) >= 3 * stored


# systemd


def test_service() -> None:
    """The unit starts the command with settings that there are, and gives it the time to stop."""
    text = (EXAMPLES / "sglang-cached.service").read_text()
    (command,) = re.findall(r"^ExecStart=\S+/sglang-cached (.*)$", text, re.M)
    given = dict(re.findall(r"^Environment=(\w+)=(.*)$", text, re.M))
    assert command == "start"
    assert given.keys() <= {flag.variable for flag in FLAGS}
    assert normal_url(given["SGLANG_CACHED_SGLANG_URL"])
    (folder,) = re.findall(r"^StateDirectory=(.*)$", text, re.M)
    assert given["SGLANG_CACHED_CACHE_PATH"] == f"/var/lib/{folder}"
    (seconds_to_stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.M)
    assert int(seconds_to_stop) > STOP_SECONDS
