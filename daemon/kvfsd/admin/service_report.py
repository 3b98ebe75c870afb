"""What every process with an open service says of it on its admin socket."""

from __future__ import annotations

import time
from typing import Any

from kvfsd.admin.admin import Method, NoParams
from kvfsd.metrics import prometheus_text
from kvfsd.service.service import Service


def service_status(service: Service, state: str, since_ns: int) -> dict[str, Any]:
    """State (failsafe goes before `state`), metrics, warnings, and nanoseconds since wall time `since_ns`."""
    return {
        "state": "failsafe" if service.failsafe_reason else state,
        "failsafe_reason": service.failsafe_reason,
        "metrics": service.metrics.snapshot(),
        "warnings": list(service.pool.warnings),
        "uptime_ns": time.time_ns() - since_ns,
    }


def metrics_method(service: Service) -> Method:
    """The admin method `metrics`."""

    async def metrics(_: NoParams) -> dict[str, Any]:
        return {"text": prometheus_text(service.metrics).decode()}

    return Method("All metrics in Prometheus' text format.", metrics)
