"""The files for containers say what the server does: ports, paths, times, options, metrics."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import urllib.request
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families
from running import Running

from alexdeploy.cli.app import app
from alexdeploy.cli.serve import serve
from alexdeploy.serving.models import Repository
from alexdeploy.serving.server import ServerOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())
KUBERNETES = {each["kind"]: each for each in yaml.safe_load_all((CONTAINERS / "kubernetes.yaml").read_text())}
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
DASHBOARD = json.loads((CONTAINERS / "grafana/dashboards/alexdeploy.json").read_text())
RULES = [rule for group in yaml.safe_load((CONTAINERS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
OPTIONS = ServerOptions()
SERVE = {name: parameter.default for name, parameter in inspect.signature(serve).parameters.items()}
CACHE = "/var/cache/alexdeploy"


def instruction(name: str) -> list[str]:
    return re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)


def expressions() -> list[str]:
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    notes = [note["expr"] for note in DASHBOARD["annotations"]["list"]]
    variables = [each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return [*targets, *notes, *variables, *(rule["expr"] for rule in RULES)]


def test_the_extras_of_the_image_are_those_of_the_package() -> None:
    extras = dict(re.findall(r"^ARG (\w+)_EXTRAS=(.*)$", DOCKERFILE, re.MULTILINE))
    assert set(extras) == {"CPU", "GPU", "TRAIN"}
    for names in extras.values():
        assert set(names.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_what_the_wheel_is_built_from_is_in_the_context_of_the_build() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    project = PROJECT["project"]
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [
        *re.findall(r"[\w/-]*constraints[\w-]*\.txt", " ".join(instruction("COPY"))),
        "pyproject.toml",
        project["readme"],
        *project["license-files"],
    ]
    needed += [*wheel["packages"], *wheel["force-include"]]
    assert [path for path in needed if not any(fnmatch(path, pattern) for pattern in kept)] == []


def test_the_health_check_of_the_image_follows_the_server(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = instruction("HEALTHCHECK")
    command = json.loads(check.partition(" CMD ")[2])
    assert command[0] == "python3"
    assert f"'127.0.0.1', {SERVE['port']}," in command[-1]

    def exit_code(port: int) -> int:
        text = command[-1].replace(str(SERVE["port"]), str(port))
        return subprocess.run([sys.executable, *command[1:-1], text], capture_output=True, timeout=60).returncode

    assert exit_code(server.port) == 0
    monkeypatch.setattr(Repository, "is_ready", property(lambda _: False))
    assert exit_code(server.port) == 1


def test_every_metric_and_label_of_dashboard_and_alerts_is_one_of_the_server(server: Running) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
        text = response.read().decode()
    families = list(text_string_to_metric_families(text))
    samples = {f.name + end for f in families for end in _ENDS[f.type]}
    labels = {label for f in families for sample in f.samples for label in sample.labels}
    # The labels of a metric that nothing was counted in yet, and those of Prometheus.
    labels |= {"protocol", "status", "stage", "le", "instance", "job"}
    used = " ".join(expressions())
    assert len(expressions()) > 20
    assert set(re.findall(r"\b(?:alexdeploy|process)_\w+", used)) <= samples
    in_selectors = re.findall(r"(\w+)(?:=~|!~|!=|=)\"", used)
    in_groups = [
        name.strip() for names in re.findall(r"(?:by|ignoring) \(([^)]*)\)", used) for name in names.split(",")
    ]
    assert {*in_selectors, *in_groups} <= labels


_ENDS = {
    "counter": ("_total",),
    "gauge": ("",),
    "info": ("_info",),
    "histogram": ("_bucket", "_sum", "_count"),
    "unknown": ("",),
}


def test_panels_have_numbers_of_their_own_and_say_what_they_show() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"


@pytest.mark.parametrize(
    "arguments", [COMPOSE["services"]["serve"]["command"], CONTAINER["args"]], ids=["compose", "k8s"]
)
def test_the_server_is_started_with_options_that_it_has(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    known = {name for parameter in command.commands["serve"].params for name in parameter.opts}
    assert arguments[0] == "serve"
    assert {word for word in arguments if word.startswith("-")} <= known


def test_ports_and_paths_of_health_are_the_defaults_of_the_server(server: Running) -> None:
    ports = [SERVE["port"], SERVE["grpc_port"]]
    assert [OPTIONS.port, OPTIONS.grpc_port] == ports
    assert instruction("EXPOSE") == [" ".join(map(str, ports))]
    assert [each["containerPort"] for each in CONTAINER["ports"]] == ports
    names = {each["name"]: each["containerPort"] for each in CONTAINER["ports"]}
    assert [names[each["targetPort"]] for each in KUBERNETES["Service"]["spec"]["ports"]] == ports
    assert COMPOSE["services"]["serve"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]
    (scrape,) = yaml.safe_load((CONTAINERS / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"][0]["targets"] == [f"serve:{SERVE['port']}"]
    for probe, word in (("startupProbe", "ready"), ("readinessProbe", "ready"), ("livenessProbe", "live")):
        get = CONTAINER[probe]["httpGet"]
        assert names[get["port"]] == SERVE["port"]
        assert get["path"].endswith(word)
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{get['path']}") as response:
            assert response.status == 200


def test_a_container_is_given_the_time_to_answer_what_it_has_accepted() -> None:
    assert OPTIONS.drain_seconds == SERVE["drain_seconds"]
    pause = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] > pause + OPTIONS.drain_seconds
    assert int(COMPOSE["services"]["serve"]["stop_grace_period"].removesuffix("s")) > OPTIONS.drain_seconds
    assert instruction("STOPSIGNAL") == ["SIGTERM"]
    # A shell as process 1 would not pass the signal on.
    assert json.loads(instruction("ENTRYPOINT")[0]) == list(PROJECT["project"]["scripts"])


def test_a_pod_runs_as_the_user_of_the_image_with_a_root_that_is_only_read() -> None:
    (user,) = instruction("USER")
    assert f"{POD['securityContext']['runAsUser']}:{POD['securityContext']['runAsGroup']}" == user
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert COMPOSE["services"]["serve"]["read_only"]
    assert f"ALEXDEPLOY_CACHE={CACHE}" in DOCKERFILE
    (folder,) = instruction("WORKDIR")[-1:]
    mounts = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
    assert set(mounts) == {f"{folder}/models", CACHE, "/tmp"}
    assert mounts[f"{folder}/models"]["readOnly"]
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in POD["volumes"]}
    assert COMPOSE["services"]["serve"]["volumes"] == [f"../models:{folder}/models:ro", f"cache:{CACHE}"]


def test_the_objects_of_kubernetes_find_each_other() -> None:
    labels = KUBERNETES["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert KUBERNETES["Service"]["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert KUBERNETES[kind]["spec"]["selector"]["matchLabels"] == labels
    claims = {
        volume["persistentVolumeClaim"]["claimName"] for volume in POD["volumes"] if "persistentVolumeClaim" in volume
    }
    assert claims == {KUBERNETES["PersistentVolumeClaim"]["metadata"]["name"]}
    assert KUBERNETES["PodDisruptionBudget"]["spec"]["minAvailable"] < KUBERNETES["Deployment"]["spec"]["replicas"]


def test_what_compose_mounts_is_there_and_where_its_programs_look() -> None:
    inside: dict[str, str] = {}
    for name in ("prometheus", "grafana"):
        for mount in COMPOSE["services"][name]["volumes"]:
            source, target, *_ = mount.split(":")
            inside[target] = source
            if source.startswith("."):
                assert (CONTAINERS / source).exists()
            else:
                assert source in COMPOSE["volumes"]
    provider = yaml.safe_load((CONTAINERS / "grafana/provisioning/dashboards/alexdeploy.yml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (CONTAINERS / inside[folder] / Path(home).relative_to(folder)).exists()
    source = yaml.safe_load((CONTAINERS / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    target = COMPOSE["services"]["serve"]["build"]["target"]
    assert re.search(rf" AS {target}$", DOCKERFILE, re.MULTILINE)
