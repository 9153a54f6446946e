"""What the server measures of itself, for Prometheus.

With several worker processes the values are in files that they share, and any of them answers for all;
``prometheus_client`` decides that by the environment variable PROMETHEUS_MULTIPROC_DIR when it is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from statistics import fmean

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
#: What several processes tell the mean of, and not the sum.
_UTILISATION, _REAL_TIME_FACTOR = "onebest_utilisation", "onebest_real_time_factor"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
_BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 64)


class Metrics:
    """All metrics of one process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(f"onebest_{name}", meaning, registry=registry, multiprocess_mode="livesum")

        def share(name: str, meaning: str) -> Gauge:
            return Gauge(name, meaning, registry=registry, multiprocess_mode="liveall")

        def seconds(name: str, meaning: str) -> Histogram:
            return Histogram(f"onebest_{name}_seconds", meaning, registry=registry, buckets=_SECONDS)

        self.streams = gauge("streams", "Connected clients.")
        self.detached = gauge("detached_sessions", "Sessions whose client may come back.")
        self.handshakes = gauge("handshakes", "Connections that have not finished their opening.")
        self.queue_seconds = gauge("queue_seconds", "Audio that waits in all queues.")
        self.behind = gauge("streams_behind", "Live streams that are behind by more than behind_seconds.")
        self.utilisation = share(
            _UTILISATION, "Share of their time that the decoding threads work, the mean of all processes."
        )
        self.real_time_factor = share(_REAL_TIME_FACTOR, "Work a second of audio, over the last seconds.")
        self.loop_lag = seconds("event_loop_lag", "How late the event loop runs what is due.")
        self.partial_latency = seconds("partial_latency", "From the last audio of a chunk to its text.")
        self.final_latency = seconds("final_latency", "From the end of the audio to the final text.")
        self.batch_size = Histogram(
            "onebest_batch_size", "Streams decoded together.", registry=registry, buckets=_BATCHES
        )
        self.audio_seconds = Counter("onebest_audio_seconds", "Audio decoded.", registry=registry)
        self.busy_seconds = Counter("onebest_busy_seconds", "Time that threads decoded.", registry=registry)
        self.sessions = Counter("onebest_sessions", "Sessions begun.", ["path"], registry=registry)
        self.refusals = Counter(
            "onebest_refusals", "Clients refused or cut off, by the limit.", ["cause"], registry=registry
        )

    def refuse(self, cause: str) -> None:
        """Count a refusal; ``cause`` names the limit."""
        self.refusals.labels(cause).inc()

    def render(self) -> bytes:
        """Return all values in Prometheus' text format."""
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        registry.register(_AllProcesses())
        return generate_latest(registry)


class _AllProcesses(Collector):
    """What all processes measured: of shares the mean, of all else the sum."""

    def collect(self) -> Iterator[Metric]:
        """Give each metric."""
        for metric in MultiProcessCollector(None).collect():  # type: ignore[no-untyped-call]
            values = [sample.value for sample in metric.samples]
            if metric.name == _REAL_TIME_FACTOR:
                values = list(filter(None, values)) or [0.0]  # 0 is a process that has had no audio
            if metric.name in (_UTILISATION, _REAL_TIME_FACTOR):
                metric.samples = [metric.samples[0]._replace(labels={}, value=fmean(values))]
            yield metric
