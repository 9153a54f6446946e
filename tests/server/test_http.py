"""Plain requests, tokens and origins."""

import asyncio
import http.client
import json
import os
import ssl
import subprocess
import sys

import pytest
from clients import sherpa, url
from tiny_model import make_audio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from onebest.errors import ConfigError
from onebest_server.access import Access, is_loopback, read_origin, read_tokens
from onebest_server.http import load_page
from onebest_server.server import Settings


def get(server, path, method="GET", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def ask(serving, *requests, settings=None):
    """Return status, headers and body of each request to one server."""

    async def run():
        async with serving(settings) as server:
            return [await asyncio.to_thread(get, server, path, **headers) for path, headers in requests]

    return asyncio.run(run())


def test_health_and_readiness(serving):
    answers = ask(serving, ("/healthz", {}), ("/readyz", {}), ("/nothing", {}), ("/../secret", {}))
    assert [response.status for response, _ in answers] == [200, 200, 404, 404]
    assert all(response.headers["Connection"] == "close" for response, _ in answers)


@pytest.mark.parametrize(("method", "body"), [("POST", b"audio"), ("POST", None), ("PUT", iter([b"audio"]))])
def test_methods_that_change_something(serving, method, body):
    [(response, text)] = ask(serving, ("/v1/listen", {"method": method, "body": body}))
    assert (response.status, response.headers["Allow"], text) == (405, "GET, HEAD", b"Expected GET.\n")


def test_a_refused_request_may_be_sent_to_its_end(serving):
    async def run():
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for piece in (
                b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"1\r\na\r\n",
                b"0\r\n\r\n",
            ):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.05)  # for an end of the connection to arrive before the next
            status = await reader.readline()
            writer.close()
            await writer.wait_closed()
            return status

    assert asyncio.run(run()) == b"HTTP/1.1 405 Method Not Allowed\r\n"


@pytest.mark.parametrize("cut", [1, len(b"GET /healthz HTTP/1.1\r\nReferer: ")])
def test_a_request_that_comes_in_pieces(serving, cut):
    request = b"GET /healthz HTTP/1.1\r\nReferer: POST /\r\n\r\n"

    async def run():
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request[:cut])
            await asyncio.sleep(0.1)  # so that the server finds two
            writer.write(request[cut:])
            status = await reader.readline()
            writer.close()
            return status

    assert asyncio.run(run()) == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/onebest", "/nothing"])
def test_an_answer_to_head_has_no_body(serving, path):
    async def run():
        async with serving() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"HEAD {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

    head, _, body = asyncio.run(run()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 ")
    assert b"Content-Length: 0" not in head
    assert body == b""


def test_a_protocol_without_an_upgrade(serving):
    [(response, _)] = ask(serving, ("/onebest", {}))
    assert response.status == 426


def test_metrics(serving):
    audio = make_audio(1.0)

    async def run():
        async with serving() as server:
            await sherpa(server, audio)
            await asyncio.sleep(0.6)
            return await asyncio.to_thread(get, server, "/metrics")

    response, body = asyncio.run(run())
    values = dict(
        line.rsplit(" ", 1)
        for line in body.decode().splitlines()
        if not line.startswith("#") and "_bucket" not in line
    )
    assert response.headers["Content-Type"].startswith("text/plain")
    assert values['onebest_sessions_total{path="/"}'] == "1.0"
    assert float(values["onebest_audio_seconds_total"]) == 1.0
    assert float(values["onebest_final_latency_seconds_count"]) == 1
    assert float(values["onebest_event_loop_lag_seconds_count"]) >= 1
    for name in (
        "streams",
        "queue_seconds",
        "real_time_factor",
        "utilisation",
        "streams_behind",
        "handshakes",
    ):
        assert f"onebest_{name}" in values


def test_metrics_of_several_processes(tmp_path):
    """Sums, but the mean of what is a share; who has had no audio has no real-time factor."""
    script = (
        "import sys; from onebest_server.metrics import Metrics; metrics = Metrics(); "
        "metrics.streams.set(2); metrics.utilisation.set(float(sys.argv[1])); "
        "metrics.real_time_factor.set(float(sys.argv[2])); print(metrics.render().decode())"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for utilisation, factor in [("0.8", "0.1"), ("0.6", "0.3"), ("0.1", "0")]:
        command = [sys.executable, "-c", script, utilisation, factor]
        said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    values = dict(line.rsplit(" ", 1) for line in said.splitlines() if not line.startswith("#") and line)
    assert float(values["onebest_streams"]) == 6
    assert float(values["onebest_utilisation"]) == pytest.approx(0.5)
    assert float(values["onebest_real_time_factor"]) == pytest.approx(0.2)


def test_the_page(serving, tmp_path, monkeypatch):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<title>é</title>", "utf-8")
    (tmp_path / "page" / "app.js").write_text("1", "utf-8")
    (tmp_path / "secret").write_text("no", "utf-8")
    monkeypatch.setattr("onebest_server.http.files", lambda package: tmp_path)
    page = load_page()
    assert page.keys() == {"/", "/index.html", "/app.js"}
    answers = ask(serving, ("/", {}), ("/app.js", {}), ("/%2e%2e/secret", {}))
    assert [response.status for response, _ in answers] == [200, 200, 404]
    assert answers[0][1].decode() == "<title>é</title>"
    assert answers[0][0].headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in answers[0][0].headers["Content-Security-Policy"]
    assert "javascript" in answers[1][0].headers["Content-Type"]


TOKENS = Settings(port=0, tokens=("first-token", "second"))


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("", {}, 401),
        ("", {"Authorization": "Bearer wrong"}, 401),
        ("", {"Authorization": "Basic second"}, 401),
        ("?token=", {}, 401),
        ("", {"Authorization": "Bearer second"}, 101),
        ("", {"Authorization": "Token first-token"}, 101),
        ("?token=second", {}, 101),
    ],
)
def test_tokens(serving, path, headers, status):
    async def run():
        async with serving(TOKENS) as server:
            try:
                async with connect(url(server, f"/{path}"), additional_headers=headers):
                    return 101
            except InvalidStatus as refused:
                return refused.response.status_code

    assert asyncio.run(run()) == status


def test_what_needs_no_token_and_what_does(serving):
    answers = ask(
        serving,
        ("/healthz", {}),
        ("/readyz", {}),
        ("/metrics", {}),
        ("/metrics", {"Authorization": "Bearer second"}),
        ("/onebest", {}),
        ("/onebest?token=second", {}),
        settings=TOKENS,
    )
    assert [response.status for response, _ in answers] == [200, 200, 401, 200, 401, 426]


@pytest.mark.parametrize(
    ("access", "headers", "allowed"),
    [
        (Access(), {}, True),
        (Access(), {"origin": "http://localhost:6006", "host": "localhost:6006"}, True),
        (Access(), {"origin": "http://[::1]:6006", "host": "[::1]:6006"}, True),
        (Access(), {"origin": "http://localhost:8000", "host": "localhost:6006"}, False),
        (Access(), {"origin": "https://evil.example", "host": "localhost:6006"}, False),
        (Access(), {"origin": "http://evil.example:6006", "host": "evil.example:6006"}, False),
        (Access(), {"origin": "null", "host": "localhost:6006"}, False),
        (Access(), {"origin": "", "host": ""}, False),
        (Access(), {"origin": "http://[", "host": "localhost:6006"}, False),
        (Access(origins=("null",)), {"origin": "null", "host": "localhost:6006"}, True),
        (Access(origins=("https://a.example",)), {"origin": "https://a.example", "host": "x"}, True),
        (Access(loopback=False), {"origin": "http://asr.example", "host": "asr.example"}, True),
        (Access(loopback=False), {"origin": "http://evil.example", "host": "asr.example"}, False),
    ],
)
def test_origins(access, headers, allowed):
    assert access.allows_origin(headers) is allowed


def test_the_page_can_ask_whether_it_may_connect(serving):
    hosts = [None, "localhost:80", "asr.example", "named.example", "["]
    requests = [("/onebest", {"Host": host} if host else {}) for host in hosts]
    answers = ask(serving, *requests, settings=Settings(port=0, origins=("https://named.example",)))
    assert [response.status for response, _ in answers] == [426, 426, 403, 426, 403]


def test_another_page_is_refused(serving):
    async def run():
        async with serving() as server:
            with pytest.raises(InvalidStatus) as refused:
                await connect(url(server), origin="https://evil.example")
            async with connect(url(server), origin=f"http://127.0.0.1:{server.port}"):
                return refused.value.response.status_code

    assert asyncio.run(run()) == 403


@pytest.mark.parametrize("path", ["/model", "/onebest/", "//", "/vosk/../etc"])
def test_unknown_paths_are_refused(serving, path):
    async def run():
        async with serving() as server:
            with pytest.raises(InvalidStatus) as refused:
                await connect(url(server, path))
            return refused.value.response.status_code

    assert asyncio.run(run()) == 404


def test_a_path_that_cannot_be_read(serving):
    async def run():
        async with serving() as server:
            plain, _ = await asyncio.to_thread(get, server, "//[")
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                b"GET //[ HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            answer = await reader.read()
            writer.close()
            return plain.status, answer

    status, answer = asyncio.run(run())
    assert status == 400
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_tokens_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("ONEBEST_TOKEN", raising=False)
    assert read_tokens(None) == ()
    monkeypatch.setenv("ONEBEST_TOKEN", " abc\n")
    assert read_tokens(None) == ("abc",)
    (tmp_path / "tokens").write_text("one\n\ntwo\n")
    assert read_tokens(tmp_path / "tokens") == ("one", "two")
    (tmp_path / "notepad").write_text("one\r\n", "utf-8-sig")
    assert read_tokens(tmp_path / "notepad") == ("one",)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "spaces").write_text("one\na pass phrase\n")
    for name in ("empty", "missing", "spaces"):
        with pytest.raises(ConfigError, match=name):
            read_tokens(tmp_path / name)
    monkeypatch.setenv("ONEBEST_TOKEN", "schl\u00fcssel")
    with pytest.raises(ConfigError, match="ONEBEST_TOKEN"):
        read_tokens(None)


def test_origins_as_people_write_them():
    assert read_origin("https://Example.org/") == "https://example.org"
    for origin in ("null", "file://", "app://local", "http://[::1]:80"):
        assert read_origin(origin) == origin
    for text in ("example.org", "https://example.org/page", "https://", "*", ""):
        with pytest.raises(ConfigError, match="origin"):
            read_origin(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.5", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback(host, loopback):
    assert is_loopback(host) is loopback


def test_tls(serving, certificate):
    settings = Settings(port=0, certificate=certificate / "cert.pem", key=certificate / "key.pem")

    async def run():
        async with serving(settings) as server:
            trust = ssl.create_default_context(cafile=certificate / "cert.pem")
            async with connect(f"wss://127.0.0.1:{server.port}/vosk", ssl=trust) as socket:
                await socket.send('{"eof" : 1}')
                return json.loads(await socket.recv())

    assert asyncio.run(run()) == {"text": ""}


def test_a_certificate_that_is_none(tmp_path):
    (tmp_path / "cert.pem").write_text("none")
    with pytest.raises(ConfigError, match="a certificate and its key"):
        Settings(certificate=tmp_path / "cert.pem").make_tls()


def test_request_ids(serving, caplog):
    async def run():
        async with serving() as server:
            for given in ("my-id_1.2", "bad id", "x" * 65):
                async with connect(url(server), additional_headers={"X-Request-Id": given}):
                    pass

    with caplog.at_level("INFO"):
        asyncio.run(run())
    ids = [record.request_id for record in caplog.records if record.msg == "session begins"]
    assert ids[0] == "my-id_1.2"
    assert all(len(made) == 16 for made in ids[1:])
