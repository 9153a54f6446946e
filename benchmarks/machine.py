"""What every benchmark's JSON says of where it ran."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path


def describe_machine() -> dict[str, object]:
    """Return processor, cores, system, and the load that others put on it when the benchmark ends."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def describe_versions(*packages: str) -> dict[str, str]:
    """Return Python's version and those of the packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def model_hash(folder: Path) -> str:
    """Return one SHA-256 of a bundle's encoder, decoder and joiner, one after another."""
    parts = [next(folder.glob(f"{part}*.onnx")) for part in ("encoder", "decoder", "joiner")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()
