"""The files for more than one machine: nginx before two servers, one of which is killed; Kubernetes' fits
ours.
"""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from clients import finals
from test_workers import serve
from tiny_model import make_audio
from websockets.asyncio.client import connect

from onebest.client import AsyncClient
from onebest.events import FinalText
from onebest_server.http import PROBES
from onebest_server.limits import Limits
from onebest_server.metrics import Metrics
from onebest_server.server import STOP_SECONDS

DEPLOY = Path(__file__).parents[2] / "docs" / "deploy"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
AUDIO = make_audio(6.0)


@contextmanager
def nginx(folder, ports):
    """Run nginx as the example says, with other addresses; give its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    for address, server_port in zip(re.findall(r"server (10\S+)", text), ports, strict=True):
        text = text.replace(address, f"127.0.0.1:{server_port}")
    text = text.replace("listen 80;", f"listen 127.0.0.1:{port};")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    text = text.replace(
        "http {", f"http {{\naccess_log off;\nclient_body_temp_path {folder}/body;\n{paths}", 1
    )
    (folder / "nginx.conf").write_text(f"pid {folder}/pid;\ndaemon off;\nerror_log stderr;\n{text}", "utf-8")
    command = [NGINX, "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port, process)
            yield port
        finally:
            process.terminate()


def wait_for(port, process):
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("nginx did not start")


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_before_two_servers(tiny_folder, tmp_path, say):
    with ExitStack() as stack:
        servers = [stack.enter_context(serve(tiny_folder)) for _ in range(2)]
        port = stack.enter_context(nginx(tmp_path, [port for _, port in servers]))

        async def run():
            resumed = await resume_through(port)
            clients = [AsyncClient(f"ws://127.0.0.1:{port}") for _ in range(8)]
            for client in clients:
                await client.__aenter__()
                await client.send(AUDIO[:32000])
                await anext(aiter(client))
            servers[0][0].kill()
            for client in clients:
                await client.send(AUDIO[32000:])
                await client.finish()
            texts = [[e.text async for e in client if isinstance(e, FinalText)] for client in clients]
            for client in clients:
                await client.__aexit__(None, None, None)
            return resumed, texts

        resumed, texts = asyncio.run(run())
    assert resumed == say(AUDIO)
    assert texts == [say(AUDIO)] * 8


async def resume_through(port):
    """Lose the connection several times, and say the rest at the end; return the finals."""
    address, session = f"ws://127.0.0.1:{port}/onebest?client=one", None
    for start in range(0, len(AUDIO), 32000):
        connection = await connect(address)
        if session is None:
            await connection.send('{"type": "start"}')
            session = json.loads(await connection.recv())["session"]
        else:
            await connection.send(json.dumps({"type": "resume", "session": session, "segments": 0}))
            start = json.loads(await connection.recv())["acknowledged"]
        await connection.send(AUDIO[start : start + 32000].tobytes())
        await connection.recv()
        connection.transport.abort()
    connection = await connect(address)
    await connection.send(json.dumps({"type": "resume", "session": session, "segments": 0}))
    start = json.loads(await connection.recv())["acknowledged"]
    await connection.send(AUDIO[start:].tobytes())
    await connection.send('{"type": "finish"}')
    return finals([json.loads(message) async for message in connection])


def test_kubernetes_fits_the_server():
    parts = {
        part["kind"]: part for part in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8"))
    }
    pod = parts["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    options = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    drain_seconds = float(options.pop("--drain-seconds"))
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause + drain_seconds + STOP_SECONDS
    assert options.keys() <= {"--threads", *(f"--{name}".replace("_", "-") for name in vars(Limits()))}
    sessions = int(options["--clients"]) + int(options["--detached"])
    assert container["resources"]["limits"]["memory"] == "1Gi"
    assert 110e6 + 6e6 * sessions < 2**30
    probes = [container[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")]
    assert set(probes) == set(PROBES)
    [metric] = parts["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert f"{metric['pods']['metric']['name']} " in Metrics().render().decode()
    [endpoint] = parts["PodMonitor"]["spec"]["podMetricsEndpoints"]
    [token] = container["env"]
    assert endpoint["authorization"]["credentials"] == token["valueFrom"]["secretKeyRef"]
    assert endpoint["port"] == container["ports"][0]["name"]
    assert parts["Service"]["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"] == 6006


def test_the_container_runs_a_command_that_exists():
    text = (DEPLOY / "Containerfile").read_text("utf-8")
    command = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[1])
    assert command == ["onebest", "serve", "--host", "0.0.0.0"]
    assert '"/src[server]"' in text
