"""Manifests: what is read, what is only known, and the line that each mistake gets."""

from __future__ import annotations

import json
import textwrap

import pytest

from ambient.errors import ConfigError
from ambient.model.manifest import Parsed, parse_manifests, parse_object
from ambient.model.podspec import pod_spec


def parse(text: str) -> Parsed:
    return parse_manifests([("m.yaml", textwrap.dedent(text))])


def names(parsed: Parsed) -> list[str]:
    return [str(obj) for obj in parsed.objects]


STOCK_NGINX = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: nginx
  labels: {app: nginx}
  annotations: {deployment.kubernetes.io/revision: "1"}
spec:
  replicas: 3
  revisionHistoryLimit: 10
  strategy:
    rollingUpdate: {maxSurge: 25%, maxUnavailable: 1}
  selector:
    matchLabels: {app: nginx}
  template:
    metadata:
      creationTimestamp: null
      labels: {app: nginx}
    spec:
      containers:
      - name: nginx
        image: nginx:1.27
        imagePullPolicy: IfNotPresent
        command: ["nginx", "-g", "daemon off;"]
        ports:
        - {containerPort: 80, name: http, protocol: TCP}
        resources: {limits: {cpu: 500m, memory: 128Mi}}
        securityContext: {allowPrivilegeEscalation: false}
        volumeMounts: [{name: conf, mountPath: /etc/nginx}]
        livenessProbe: {httpGet: {path: /, port: http}}
      restartPolicy: Always
      securityContext: {}
      volumes: [{name: conf, configMap: {name: nginx}}]
"""


def test_a_stock_deployment_is_accepted_and_its_unused_fields_listed_once() -> None:
    """Nobody strips a manifest before trying something with it."""
    second = STOCK_NGINX.replace("name: nginx\n  labels", "name: other\n  labels")

    found = parse_manifests([("a.yaml", STOCK_NGINX), ("b.yaml", second)])

    assert names(found) == ["Deployment default/nginx", "Deployment default/other"]
    assert found.warnings == (
        "Deployment fields accepted and not used: spec.revisionHistoryLimit, spec.strategy, "
        "spec.template.metadata.creationTimestamp, spec.template.spec.containers[].image, "
        "spec.template.spec.containers[].imagePullPolicy, spec.template.spec.containers[].resources, "
        "spec.template.spec.containers[].securityContext, spec.template.spec.containers[].volumeMounts, "
        "spec.template.spec.restartPolicy, spec.template.spec.securityContext, spec.template.spec.volumes",
    )
    assert pod_spec(found.objects[0]).containers[0].command == ("nginx", "-g", "daemon off;")
    assert found.objects[0].origin == "a.yaml:1"


KUBECTL = """\
apiVersion: v1
items:
- apiVersion: v1
  kind: Namespace
  metadata:
    creationTimestamp: "2026-01-01T00:00:00Z"
    labels: {kubernetes.io/metadata.name: web}
    name: web
    resourceVersion: "12"
    uid: 1c
  spec: {finalizers: [kubernetes]}
  status: {phase: Active}
- apiVersion: v1
  kind: Pod
  metadata:
    generateName: nginx-7d9-
    managedFields: [{manager: kubectl}]
    name: nginx-7d9-x2x
    namespace: web
    ownerReferences:
    - {apiVersion: v1, kind: Node, name: kind-worker}
    - {apiVersion: apps/v1, kind: ReplicaSet, name: nginx-7d9, uid: 5, controller: true}
  spec:
    containers:
    - {image: nginx, name: nginx, terminationMessagePath: /dev/termination-log, volumeMounts: []}
    dnsPolicy: ClusterFirst
    enableServiceLinks: true
    nodeName: kind-worker
    tolerations: [{effect: NoExecute, key: node.kubernetes.io/not-ready}]
  status: {phase: Running, podIP: 10.244.1.5}
- apiVersion: v1
  kind: Service
  metadata: {name: nginx, namespace: web}
  spec:
    clusterIP: 10.96.7.7
    clusterIPs: [10.96.7.7]
    internalTrafficPolicy: Cluster
    ipFamilies: [IPv4]
    ports: [{name: http, port: 80, protocol: TCP, targetPort: 80}]
    selector: {app: nginx}
    sessionAffinity: None
    type: ClusterIP
  status: {loadBalancer: {}}
- apiVersion: apps/v1
  kind: ReplicaSet
  metadata: {name: nginx-7d9, namespace: web}
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: kube-root-ca.crt, namespace: web}
kind: List
metadata: {resourceVersion: ""}
"""


def test_what_kubectl_prints_is_accepted() -> None:
    """kubectl get -A -o yaml is how a cluster is carried over."""
    found = parse(KUBECTL)

    assert names(found) == ["Namespace web", "Pod web/nginx-7d9-x2x", "Service web/nginx"]
    assert found.warnings[0] == "kinds accepted and not used: ConfigMap, ReplicaSet"
    assert [warning.partition(":")[0] for warning in found.warnings[1:]] == [
        f"{kind} fields accepted and not used" for kind in ("Namespace", "Pod", "Service")
    ]


def test_pods_of_a_deployment_in_the_same_files_are_left_out() -> None:
    """A dump holds both; the Deployment makes its own pods."""
    deployment = STOCK_NGINX.replace("  name: nginx\n", "  name: nginx\n  namespace: web\n", 1)

    found = parse_manifests([("a.yaml", KUBECTL), ("b.yaml", deployment)])

    assert names(found) == ["Namespace web", "Service web/nginx", "Deployment web/nginx"]
    assert found.warnings[-1] == "pods left out, as their Deployment makes its own: 1"


def test_typed_lists_and_json_are_read_too() -> None:
    """The API server's own lists leave the kind of their items out."""
    text = '{"kind": "NamespaceList", "apiVersion": "v1", "items": [{"metadata": {"name": "a"}}]}'

    assert names(parse(text)) == ["Namespace a"]
    assert names(parse('{"kind": "List", "items": []}')) == []
    whole = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "b"}}
    assert names(parse(json.dumps({"kind": "NamespaceList", "items": [whole]}))) == ["Namespace b"]


WAYPOINT = """\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint}
spec: {gatewayClassName: istio-waypoint}
"""


def test_only_waypoint_gateways_are_used() -> None:
    """An ingress gateway in a dump is known and has no use here."""
    text = WAYPOINT + "---\n" + WAYPOINT.replace("istio-waypoint", "nginx").replace("waypoint", "ingress")

    found = parse(text)

    assert names(found) == ["Gateway default/waypoint"]
    assert found.warnings == ("kinds accepted and not used: Gateway",)


def test_kinds_of_one_name_in_two_groups_are_two() -> None:
    """Istio's Gateway and the Gateway API's may share a name."""
    istio = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: waypoint}\n"

    assert names(parse(f"{istio}---\n{WAYPOINT}")) == ["Gateway default/waypoint"]


SERVICE = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports:\n"
POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n"
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
"""

MISTAKES = {
    "kind": (
        "apiVersion: apps/v1\nkind: Deploymnet\n",
        "m.yaml:2: kind: unknown kind 'Deploymnet' (did you mean Deployment?)",
    ),
    "kind-missing": ("apiVersion: v1\nmetadata: {}\n", "m.yaml:1: kind: is missing"),
    "kind-type": ("apiVersion: v1\nkind: [a]\n", "m.yaml:2: kind: expected text, got a list"),
    "strange-kind": ("apiVersion: v1\nkind: Certificate\n", "m.yaml:2: kind: unknown kind 'Certificate'"),
    "version": (
        "apiVersion: extensions/v1beta1\nkind: Deployment\n",
        "m.yaml:1: apiVersion: unknown version 'extensions/v1beta1' of Deployment, expected apps/v1",
    ),
    "version-missing": ("kind: Pod\n", "m.yaml:1: apiVersion: is missing"),
    "unused-version": (
        "kind: ConfigMap\napiVersion: x/v1\n",
        "m.yaml:2: apiVersion: unknown version 'x/v1' of ConfigMap, expected v1",
    ),
    "no-object": ("- a\n", "m.yaml:1: expected an object, got a list"),
    "text": ("hello\n", "m.yaml:1: expected an object, got the text 'hello'"),
    "list-item": ("kind: List\nitems:\n- 5\n", "m.yaml:3: expected an object, got the number 5"),
    "typed-list-item": ("kind: PodList\nitems:\n- 5\n", "m.yaml:3: expected an object, got the number 5"),
    "list-without-items": ("kind: List\n", "m.yaml:1: a List needs a list of items"),
    "name": ("apiVersion: v1\nkind: Pod\nmetadata: {}\n", "m.yaml:3: metadata.name: is missing"),
    "unused-name": ("apiVersion: v1\nkind: Secret\n", "m.yaml:1: metadata.name: is missing"),
    "upper-case": (
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: Web\n",
        "m.yaml:4: metadata.name: the text 'Web' is not a DNS label in lower case (RFC 1123)",
    ),
    "namespace-of-namespace": (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}\n",
        "m.yaml:3: metadata.namespace: objects of this kind are in no namespace",
    ),
    "label-type": (
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels:\n    version: 1.10\n",
        "m.yaml:6: metadata.labels.version: expected text, got the number 1.1; quote it",
    ),
    "label-value": (
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels: {a: b c}\n",
        "m.yaml:5: metadata.labels.a: the text 'b c' is not a label value",
    ),
    "label-name": (
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  labels: {a/b/c: d}\n",
        "m.yaml:5: metadata.labels.a/b/c: 'a/b/c' is not a label name",
    ),
    "annotation": (
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  annotations: {port: true}\n",
        "m.yaml:5: metadata.annotations.port: expected text, got true; quote it",
    ),
    "field": (
        POD + "  - name: a\n    imagee: nginx\n",
        "m.yaml:7: spec.containers[0].imagee: unknown field (did you mean image?)",
    ),
    "strange-field": (POD + "  - name: a\n    zzz: 1\n", "m.yaml:7: spec.containers[0].zzz: unknown field"),
    "port-text": (
        SERVICE + "  - port: eighty\n",
        "m.yaml:7: spec.ports[0].port: expected a number from 1 to 65535, got the text 'eighty'",
    ),
    "port-quoted": (
        SERVICE + '  - port: "80"\n',
        "m.yaml:7: spec.ports[0].port: expected a number from 1 to 65535, got the text '80'; "
        "remove the quotes",
    ),
    "port-octal": (
        SERVICE + "  - port: 080\n",
        "m.yaml:7: spec.ports[0].port: expected a number from 1 to 65535, got the text '080'; "
        "remove the quotes",
    ),
    "port-range": (
        SERVICE + "  - port: 70000\n",
        "m.yaml:7: spec.ports[0].port: expected a number from 1 to 65535, got the number 70000",
    ),
    "port-float": (
        SERVICE + "  - port: 80.0\n",
        "m.yaml:7: spec.ports[0].port: expected a number from 1 to 65535, got the number 80.0",
    ),
    "target-quoted": (
        SERVICE + '  - {port: 80, targetPort: "8080"}\n',
        "m.yaml:7: spec.ports[0].targetPort: expected a port, got the text '8080'; remove the quotes",
    ),
    "target-name": (
        SERVICE + "  - {port: 80, targetPort: HTTP}\n",
        "m.yaml:7: spec.ports[0].targetPort: the text 'HTTP' is not the name of a port "
        "(up to 15 of a-z, 0-9 and '-')",
    ),
    "protocol": (
        SERVICE + "  - {port: 80, protocol: tcp}\n",
        "m.yaml:7: spec.ports[0].protocol: expected TCP, UDP or SCTP, got the text 'tcp'",
    ),
    "port-twice": (
        SERVICE + "  - {name: a, port: 80}\n  - {name: b, port: 80}\n",
        "m.yaml:8: spec.ports[1].port: duplicate port 80",
    ),
    "port-name-twice": (
        SERVICE + "  - {name: a, port: 80}\n  - {name: a, port: 81}\n",
        "m.yaml:8: spec.ports[1].name: duplicate name 'a'",
    ),
    "ports-unnamed": (
        SERVICE + "  - {name: a, port: 80}\n  - {port: 81}\n",
        "m.yaml:8: spec.ports[1].name: is missing (a Service with several ports names each)",
    ),
    "ports-missing": (SERVICE.replace("  ports:\n", ""), "m.yaml:4: spec.ports: is missing"),
    "spec-missing": ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n", "m.yaml:1: spec: is missing"),
    "spec-null": (
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n",
        "m.yaml:4: spec: is missing",
    ),
    "spec-type": (
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: [a]\n",
        "m.yaml:4: spec: expected a mapping, got a list",
    ),
    "list-type": (
        POD.replace("containers:\n", "containers: {}\n"),
        "m.yaml:5: spec.containers: expected a list, got a mapping",
    ),
    "no-containers": (
        POD.replace("containers:\n", "containers: []\n"),
        "m.yaml:5: spec.containers: is empty",
    ),
    "flag": (
        POD + "  - {name: a}\n  hostNetwork: yes\n",
        "m.yaml:7: spec.hostNetwork: expected true or false, got the text 'yes'",
    ),
    "env-number": (
        POD + "  - name: a\n    env:\n    - name: PORT\n      value: 8080\n",
        "m.yaml:9: spec.containers[0].env[0].value: expected text, got the number 8080; quote it",
    ),
    "args-null": (
        POD + "  - name: a\n    args: [null]\n",
        "m.yaml:7: spec.containers[0].args[0]: expected text, got nothing",
    ),
    "container-twice": (
        POD + "  - name: a\n  - name: a\n",
        "m.yaml:7: spec.containers[1].name: duplicate name 'a'",
    ),
    "probe-port": (
        POD + "  - name: a\n    readinessProbe:\n      tcpSocket:\n        port: http\n",
        "m.yaml:9: spec.containers[0].readinessProbe.tcpSocket.port: the container has no port named 'http'",
    ),
    "probe-twice": (
        POD + "  - name: a\n    livenessProbe: {exec: {command: [a]}, tcpSocket: {port: 1}}\n",
        "m.yaml:7: spec.containers[0].livenessProbe: asks in several ways: tcpSocket, exec",
    ),
    "selector-misses": (
        DEPLOYMENT + "    metadata: {labels: {app: wbe}}\n    spec: {containers: [{name: a}]}\n",
        "m.yaml:5: spec.selector: does not select the labels of spec.template",
    ),
    "policy-port": (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  rules:\n"
        "  - to:\n    - operation: {ports: [80]}\n",
        "m.yaml:7: spec.rules[0].to[0].operation.ports[0]: expected text, got the number 80; quote it",
    ),
    "policy-port-range": (
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n  rules:\n"
        "  - to:\n    - operation: {ports: ['0']}\n",
        "m.yaml:7: spec.rules[0].to[0].operation.ports[0]: expected a number from 1 to 65535 as text, "
        "got the text '0'",
    ),
    "peer-port": (
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n"
        "  selector: {matchLabels: {a: b}}\n  portLevelMtls:\n    http: {mode: STRICT}\n",
        "m.yaml:7: spec.portLevelMtls.http: expected a number from 1 to 65535 as text, got the text 'http'",
    ),
    "long-text": (
        SERVICE + f"  - {{port: {'x' * 100}}}\n",
        f"m.yaml:7: spec.ports[0].port: expected a number from 1 to 65535, got the text '{'x' * 61}...'",
    ),
    "twice": (
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Namespace\n"
        "metadata: {name: a}\n",
        "m.yaml:5: Namespace a is already defined at m.yaml:1",
    ),
    "second-document": ("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: X\n", None),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_with_its_place(case: tuple[str, str | None]) -> None:
    """Whoever wrote the file finds the line, and knows what to write instead."""
    text, message = case

    with pytest.raises(ConfigError) as caught:
        parse(text)

    assert str(caught.value) == (message or "m.yaml:5: apiVersion: is missing")


def test_the_same_object_in_two_files_names_both() -> None:
    """A directory with a backup file in it is a common accident."""
    text = SERVICE + "  - port: 80\n"

    with pytest.raises(ConfigError, match=r"^b\.yaml:1: Service default/web is already defined at a\.yaml"):
        parse_manifests([("a.yaml", text), ("b.yaml", text)])


def test_a_file_name_cannot_write_on_the_terminal() -> None:
    """An error message is no way to smuggle escape sequences."""
    with pytest.raises(ConfigError) as caught:
        parse_manifests([("a\n\x1b[31m.yaml", "kind: X")])

    assert str(caught.value).startswith("a\\n\\x1b[31m.yaml:1: ")


def test_a_namespace_is_filled_in_where_none_is_written() -> None:
    """Whoever reads the body later must not guess."""
    (obj,) = parse_manifests([("a.yaml", SERVICE + "  - port: 80\n")], namespace="shop").objects

    assert obj.namespace == "shop"
    assert obj.body["metadata"] == {"name": "web", "namespace": "shop"}


def test_plain_data_is_checked_like_a_file() -> None:
    """The control plane does not trust its callers to have looked."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": {"b": "c"}}}

    assert parse_object(body, "m.yaml:7").labels == {"b": "c"}
    with pytest.raises(ConfigError, match=r"^m\.yaml:7: metadata\.name: is missing$"):
        parse_object({**body, "metadata": {}}, "m.yaml:7")
    with pytest.raises(ConfigError, match=r"^object: kind: is missing$"):
        parse_object({})
    with pytest.raises(ConfigError, match=r"^object: kind Secret is not used by the mesh$"):
        parse_object({**body, "kind": "Secret"})


def test_plain_data_that_never_ends_is_refused() -> None:
    """Depth is bounded on every way in."""
    deep: list[object] = []
    for _ in range(70):
        deep = [deep]

    with pytest.raises(ConfigError, match=r"^m\.yaml:7: nested deeper than 64 levels$"):
        parse_object({"kind": deep}, "m.yaml:7")
