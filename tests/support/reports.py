"""What a healthy host reports before a run."""

from __future__ import annotations

from kdcl_dist.launch.preflight.host_report import HostReport

REPORT = HostReport(
    address="10.0.0.1",
    hostname="one",
    versions={"kdcl_dist": "0.1.0", "torch": "2.14.1", "ray": "2.60.0", "python": "3.11.7"},
    data={"train": "a" * 64, "test": "b" * 64},
    problems={},
    clock=1000.0,
    shm_bytes=8 << 30,
)
