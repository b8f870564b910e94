"""The container as a cluster runs it, sealed: shared by every target that writes pods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpack.deploy import access, serving, sizing
from modelpack.deploy.documents import said

if TYPE_CHECKING:
    from modelpack.deploy.documents import Said
    from modelpack.deploy.facts import Facts, Wish

APP = "app.kubernetes.io/name"


def resources(facts: Facts) -> dict[str, Any]:
    """Ask for what the bench measured, and for no more than that."""
    needs = sizing.needs(facts)
    amounts = {
        "cpu": said(needs.why_cpus, str(needs.cpus)),
        "memory": said(needs.why_memory, f"{needs.memory}Mi"),
    }
    return {
        "requests": amounts,
        "limits": said(
            "The same: the server takes its threads from the processor's limit (without one, from every core of the "
            "node), and memory that is promised to nobody ends in a kill.",
            {"cpu": str(needs.cpus), "memory": f"{needs.memory}Mi"},
        ),
    }


def sealed() -> dict[str, Any]:
    """Take every right away that the server does not need."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": said("The server writes no file.", value=True),
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": said(
            "The image's own user; any other will do. Leave these two lines out where the cluster chooses (OpenShift).",
            serving.USER,
        ),
        "runAsGroup": serving.USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def probes(wish: Wish) -> dict[str, Any]:
    """Ask the server's own routes, which need no token and no certificate of a client."""
    secured = {"scheme": "HTTPS"} if wish.tls else {}
    trusting = " The kubelet takes any certificate of the server's, and shows none." if wish.tls else ""

    def probe(path: str, period: int, failures: int) -> dict[str, Any]:
        asked = {"path": path, "port": access.scheme(wish), **secured}
        return {"httpGet": asked, "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures}

    return {
        "startupProbe": said(
            f"Two minutes to load the model; the other probes wait for it.{trusting}", probe(serving.STARTED, 2, 60)
        ),
        "livenessProbe": said("Is the process alive? It is restarted when it is not.", probe(serving.ALIVE, 10, 3)),
        "readinessProbe": said("Does it take work? 503 while it drains.", probe(serving.READY, 5, 2)),
    }


def ports(facts: Facts, wish: Wish) -> list[dict[str, Any]]:
    """Name the ports."""
    http = {"name": access.scheme(wish), "containerPort": serving.PORT}
    return [http, *([{"name": "grpc", "containerPort": serving.GRPC_PORT}] if facts.served.grpc else [])]


def environment(wish: Wish) -> list[dict[str, str] | Said]:
    """Give the server's variables."""
    stopping, files, opened = (
        [{"name": key, "value": value} for key, value in found.items()]
        for found in (serving.environment(), access.environment(wish), access.opened(wish))
    )
    return [*stopping, *files, *(said(access.OPEN_WHY, item) for item in opened)]


def mounted(wish: Wish) -> dict[str, Any]:
    """Show the container the secrets."""
    shown = [{"name": item.name, "mountPath": item.folder, "readOnly": True} for item in access.mounts(wish)]
    return {"volumeMounts": shown} if shown else {}


def volumes(wish: Wish) -> dict[str, Any]:
    """Name the secrets, and of each no more than the server reads."""
    found = [
        {
            "name": item.name,
            "secret": {
                "secretName": item.secret,
                "items": [{"key": part, "path": part} for part in item.files.values()],
            },
        }
        for item in access.mounts(wish)
    ]
    return {"volumes": said(_RENEWED, found)} if found else {}


_RENEWED = (
    "Secrets of this namespace, which no file here holds. Renewed certificates are taken as they come; other tokens "
    "after `kubectl rollout restart`."
)


def placed(facts: Facts) -> dict[str, Any]:
    """Keep an image for one kind of processor away from nodes with another."""
    kinds = facts.served.architectures
    if len(kinds) != 1:
        return {}
    return {"nodeSelector": said(f"The image was built for {kinds[0]} alone.", {"kubernetes.io/arch": kinds[0]})}


def identity() -> dict[str, Any]:
    """Give the pod nothing to speak to the cluster with."""
    return {
        "automountServiceAccountToken": said("The server never speaks to the cluster.", value=False),
        "enableServiceLinks": said(
            "Without it a Service called `modelpack` would set MODELPACK_PORT to an address, which is no port.",
            value=False,
        ),
        "terminationGracePeriodSeconds": said(
            f"{serving.DRAIN_DELAY} seconds in which new work is still served while the cluster takes the pod out of "
            f"its Services, {serving.DRAIN_TIMEOUT} for what is in flight, {serving.MARGIN} to spare.",
            serving.GRACE,
        ),
    }
