"""KServe: how the image runs, and how many of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelpack.deploy import names, serving
from modelpack.deploy.documents import said, to_yaml
from modelpack.deploy.kubernetes import pod, workload

if TYPE_CHECKING:
    from modelpack.deploy.facts import Facts, Files, Wish

FORMAT = "modelpack"


def files(facts: Facts, wish: Wish) -> Files:
    """Give the ServingRuntime and the InferenceService."""
    name = names.chosen(wish.name, facts.name)
    return {
        "servingruntime.yaml": _runtime(facts, name, wish),
        "inferenceservice.yaml": _service(facts, name),
        "kustomization.yaml": to_yaml(
            f"{facts.name} {facts.version} on KServe: kubectl apply -k . --namespace NAMESPACE",
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": ["servingruntime.yaml", "inferenceservice.yaml"],
            },
        ),
    }


def _runtime(facts: Facts, name: str, wish: Wish) -> str:
    image = facts.served
    container = {
        "name": "kserve-container",
        "image": image.reference if image.pinned else said(workload.UNPINNED, image.reference),
        "ports": said(
            "KServe sends HTTP to the first port.",
            [{"name": "http1", "containerPort": serving.PORT, "protocol": "TCP"}],
        ),
        "env": pod.environment(wish),
        **pod.mounted(wish),
        **{key: said(item.why, {**item.value, "httpGet": {**item.value["httpGet"], "port": serving.PORT}})
           for key, item in pod.probes(wish).items()},
        "resources": pod.resources(facts),
        "securityContext": pod.sealed(),
    }  # fmt: skip
    document = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": name, "labels": {pod.APP: name}},
        "spec": {
            "annotations": {
                "prometheus.kserve.io/port": str(serving.PORT),
                "prometheus.kserve.io/path": serving.METRICS,
            },
            "multiModel": False,
            "protocolVersions": ["v2", "v1"],
            "supportedModelFormats": said(
                "A format of its own and never chosen by itself: an InferenceService must name this runtime.",
                [{"name": FORMAT, "version": "1", "autoSelect": False}],
            ),
            **pod.placed(facts),
            "containers": [container],
            **pod.volumes(wish),
        },
    }
    return to_yaml(
        "How the image runs. The model is inside; another InferenceService may bring its own with a `storageUri` that "
        "holds model.onnx and signature.json, and MODELPACK_MODEL=/mnt/models in its `env`.",
        document,
    )


def _service(facts: Facts, name: str) -> str:
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "labels": workload.labels(facts, name),
            "annotations": {
                "serving.kserve.io/deploymentMode": said(
                    "Plain Deployments: Knative takes not every field of a pod unless it is told to.",
                    "RawDeployment",
                ),
                "serving.kserve.io/enable-prometheus-scraping": "true",
                "modelpack/artifact": facts.artifact,
            },
        },
        "spec": {
            "predictor": {
                "minReplicas": said("Two, so that one may leave.", 2),
                "maxReplicas": 10,
                "scaleMetric": "cpu",
                "scaleTarget": 70,
                **{key: value for key, value in pod.identity().items() if key != "enableServiceLinks"},
                "model": {
                    "modelFormat": {"name": FORMAT, "version": "1"},
                    "runtime": name,
                    "protocolVersion": "v2",
                },
            }
        },
    }
    path = f"/v2/models/{facts.name}/infer"
    return to_yaml(f"How many servers there are. Ask it at {path} or /v1/models/{facts.name}:predict.", document)
