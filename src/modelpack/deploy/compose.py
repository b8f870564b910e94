"""Docker Compose: the image sealed as in a cluster, with Prometheus and Grafana that know it already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.deploy import access, names, serving, shipped, sizing
from modelpack.deploy.documents import said, to_yaml

if TYPE_CHECKING:
    from modelpack.deploy.facts import Facts, Files, Wish

PROMETHEUS, GRAFANA = "prom/prometheus:v3.5.0", "grafana/grafana:12.1.0"
_LATER = "The name is a version that was there when this was written; a newer one will do."


def files(facts: Facts, wish: Wish) -> Files:
    """Give compose.yaml and what it mounts."""
    name = names.chosen(wish.name, facts.name)
    source = {"name": "Prometheus", "type": "prometheus", "uid": "prometheus", "url": "http://prometheus:9090",
              "access": "proxy", "isDefault": True}  # fmt: skip
    provider = {"name": "modelpack", "type": "file", "options": {"path": "/var/lib/grafana/dashboards"}}
    return {
        "compose.yaml": _compose(facts, wish),
        "prometheus/prometheus.yml": _scrape(name, wish),
        "prometheus/alerts.yml": shipped.alerts(),
        "grafana/datasources/prometheus.yaml": to_yaml(
            "Where Grafana reads figures.", {"apiVersion": 1, "datasources": [source]}
        ),
        "grafana/dashboards/modelpack.yaml": to_yaml(
            "Where Grafana finds dashboards.", {"apiVersion": 1, "providers": [provider]}
        ),
        "grafana/modelpack.json": shipped.dashboard(),
        **({"secrets/.gitignore": _IGNORED} if access.mounts(wish) else {}),
    }


_IGNORED = "# What lies here is for no repository.\n*\n!.gitignore\n"


def _compose(facts: Facts, wish: Wish) -> str:
    document = {
        "services": {
            "model": _model(facts, wish),
            "prometheus": {
                "image": said(_LATER, PROMETHEUS),
                "volumes": ["./prometheus:/etc/prometheus:ro", "figures:/prometheus"],
                **_shown(wish, only=access.CHAIN),
                "ports": ["127.0.0.1:9090:9090"],
                "depends_on": ["model"],
                "restart": "unless-stopped",
            },
            "grafana": {
                "image": GRAFANA,
                "environment": said(
                    "Whoever reaches this machine's own address may look; nobody may change anything.",
                    {"GF_AUTH_ANONYMOUS_ENABLED": "true", "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
                     "GF_AUTH_DISABLE_LOGIN_FORM": "true", "GF_ANALYTICS_REPORTING_ENABLED": "false",
                     "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": "/var/lib/grafana/dashboards/modelpack.json"},
                ),
                "volumes": [
                    "./grafana/datasources:/etc/grafana/provisioning/datasources:ro",
                    "./grafana/dashboards:/etc/grafana/provisioning/dashboards:ro",
                    "./grafana/modelpack.json:/var/lib/grafana/dashboards/modelpack.json:ro",
                ],
                "ports": ["127.0.0.1:3000:3000"],
                "depends_on": ["prometheus"],
                "restart": "unless-stopped",
            },
        },
        "volumes": {"figures": {}},
        **_secrets(wish),
    }  # fmt: skip
    return to_yaml(
        f"{facts.name} {facts.version} on one machine: docker compose up --detach\n"
        f"The model answers at {access.scheme(wish)}://localhost:8080, Prometheus at :9090, Grafana at :3000.",
        document,
    )


def _secrets(wish: Wish) -> dict[str, Any]:
    """Name the files that hold the secrets."""
    found = {
        part: {"file": f"./secrets/{mount.secret}/{part}"}
        for mount in access.mounts(wish)
        for part in mount.files.values()
    }
    why = (
        "Files that you put there, and that the container's user may read. Renew them in place, as `cp` does: another "
        "file under the same name is seen after `docker compose restart`."
    )
    return {"secrets": said(why, found)} if found else {}


def _shown(wish: Wish, only: str = "") -> dict[str, Any]:
    """Show a container all of them, or one."""
    shown = [
        {"source": part, "target": mount.path(part)}
        for mount in access.mounts(wish)
        for part in mount.files.values()
        if only in ("", part)
    ]
    return {"secrets": shown} if shown else {}


def _model(facts: Facts, wish: Wish) -> dict[str, Any]:
    image, needs = facts.served, sizing.needs(facts)
    reference = said("From the registry.", image.reference)
    if image.local:
        why = "As `docker load` names it; `modelpack build --output image.tar` writes the archive."
        reference = said(why, image.tag)
    ports = [serving.PORT, *([serving.GRPC_PORT] if image.grpc else [])]
    return {
        "image": reference,
        **({"pull_policy": said("A stranger's image of that name shall not take its place.", "never")}
           if image.local else {}),
        **({"platform": image.platforms[0]} if len(image.platforms) == 1 else {}),
        "user": said("The image's own user; any other will do.", f"{serving.USER}:{serving.USER}"),
        "read_only": said("The server writes no file.", value=True),
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "cpus": said(needs.why_cpus, needs.cpus),
        "mem_limit": said(needs.why_memory, f"{needs.memory}m"),
        "pids_limit": 256,
        "environment": said("Together they fit the grace period below.", _environment(wish)),
        **_shown(wish),
        "stop_grace_period": f"{1 + serving.DRAIN_TIMEOUT + serving.MARGIN}s",
        "ports": said(
            _ALONE if wish.tls and (wish.tokens or wish.clients) else _UNGUARDED,
            [f"127.0.0.1:{port}:{port}" for port in ports],
        ),
        "restart": said("The image brings its own health check.", "unless-stopped"),
    }  # fmt: skip


_UNGUARDED = "This machine alone. Put TLS and tokens before you open it to others."
_ALONE = "This machine alone; without the address others reach it, and /metrics too."


def _environment(wish: Wish) -> dict[str, Any]:
    opened = {key: said(access.OPEN_WHY, value) for key, value in access.opened(wish).items()}
    return {**serving.environment(delay=1), **access.environment(wish), **opened}


def _scrape(name: str, wish: Wish) -> str:
    job: dict[str, Any] = {"job_name": name, "static_configs": [{"targets": [f"model:{serving.PORT}"]}]}
    if wish.tls:
        chain = access.environment(wish)["MODELPACK_TLS_CERT"]
        trusted = {"ca_file": chain, "server_name": said("Which the certificate must name.", "localhost")}
        job |= {"scheme": "https", "tls_config": said("The server's own certificate vouches for it.", trusted)}
    document = {
        "global": {"scrape_interval": "5s", "evaluation_interval": "5s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [job],
    }
    return to_yaml("Prometheus scrapes the model's server and watches its alerts.", document)
