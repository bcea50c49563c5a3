"""What the parts of a Service have to agree on, beyond the type of each.

Floor 0. Source: Kubernetes ``pkg/apis/core/validation`` (ValidateService).
"""

from __future__ import annotations

from ambient.model.objects import FieldError, Object


def check_service(obj: Object) -> None:
    """Check that the ports of a Service can be told apart.

    Raises:
        FieldError: no ports though it has an address, a port twice, or several ports without names.
    """
    ports = obj.spec.get("ports") or []
    headless = obj.spec.get("clusterIP") == "None" or obj.spec.get("type") == "ExternalName"
    if not ports and not headless:
        raise FieldError(("spec", "ports"), "is missing")
    seen = set()
    for index, port in enumerate(ports):
        path = ("spec", "ports", index)
        if len(ports) > 1 and not port.get("name"):
            raise FieldError((*path, "name"), "is missing (a Service with several ports names each)")
        this = port["port"], port.get("protocol", "TCP")
        if this in seen:
            raise FieldError((*path, "port"), f"duplicate port {port['port']}")
        seen.add(this)
