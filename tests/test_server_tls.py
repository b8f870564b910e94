"""TLS and mutual TLS, with real certificates and real clients: who is let in where, and how files are renewed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from certificates import Authority, Certificate
from modelpack.server.faults import StartError
from modelpack.server.settings import Settings
from modelpack.server.tls import Tls
from serving import JSON, Server, hammer, receive_all, scaled, stopped_busy, wait_for

ROWS = b'{"instances": [[1]]}'
TOKEN = "first-token-0123456789"
OPEN = ["/livez", "/healthz", "/health", "/readyz", "/startupz", "/ping", "/health-check", "/v2/health/ready"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def host(ours):
    return ours.issue("host")


@pytest.fixture(scope="module")
def client(ours):
    return ours.issue("client")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return scaled(tmp_path_factory.mktemp("model"), 2)


def files(certificate: Certificate, **more: object) -> dict[str, object]:
    return {"tls_cert": certificate.path, "tls_key": certificate.key, **more}


def predicted(server: Server, **headers: str) -> int:
    return server.ask("POST", "/predict", ROWS, JSON | headers)[0]


def let_in(server: Server, trusting: ssl.SSLContext) -> bool:
    before, server.trusting = server.trusting, trusting
    try:
        return predicted(server) == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        server.trusting = before


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def mutual(request, ours, host, client, model):
    """A server that asks clients for certificates."""
    given = files(host, tls_client_ca=ours.path, workers=request.param)
    with Server(model, trusting=ours.trusted(client), wait=False, **given) as server:
        wait_for(lambda: server.ask("GET", "/readyz")[0] == 200)
        yield server


def test_clients_that_trust_the_authority_get_answers(ours, theirs, host, model):
    with Server(model, trusting=ours.trusted(), **files(host)) as server:
        assert predicted(server) == 200
        assert "holds until" in "".join(server.log)
        assert 0 < server.metric("modelpack_tls_certificate_end_seconds") - time.time() < 3 * 86400
        server.trusting = theirs.trusted()
        with pytest.raises(ssl.SSLCertVerificationError):
            predicted(server)
        with server.connect() as plain:
            plain.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"HTTP" not in plain.recv(4096)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_versions_before_1_2_are_not_spoken(mutual, ours, client, version):
    context = ours.trusted(client)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    before, mutual.trusting = mutual.trusting, context
    try:
        if version == ssl.TLSVersion.TLSv1_1:
            with pytest.raises((OSError, http.client.HTTPException)):
                predicted(mutual)
        else:
            assert predicted(mutual) == 200
    finally:
        mutual.trusting = before


@pytest.fixture
def strangers(mutual, ours):
    """The same server, for clients without a certificate."""
    before, mutual.trusting = mutual.trusting, ours.trusted()
    yield mutual
    mutual.trusting = before


@pytest.mark.parametrize("path", OPEN)
def test_probes_need_no_certificate(strangers, path):
    assert strangers.ask("GET", path)[0] == 200


@pytest.mark.parametrize(
    ("path", "key"),
    [("/predict", "error"), ("/v2/models/model/infer", "error"), ("/invocations", "message"), ("/nowhere", "error")],
)
def test_whoever_shows_no_certificate_is_told_so_in_the_words_of_each_protocol(strangers, path, key):
    status, _, body = strangers.ask("POST", path, ROWS, JSON)
    assert (status, "certificate" in json.loads(body)[key]) == (403, True)


@pytest.mark.parametrize("path", ["/", "/metrics", "/openapi.json", "/v2/models"])
def test_what_is_served_is_told_to_nobody_else(strangers, path):
    assert strangers.ask("GET", path)[0] == 403
    assert strangers.ask("HEAD", path)[0] == 403


def test_the_description_says_where_a_certificate_is_needed(mutual):
    document = json.loads(mutual.ask("GET", "/openapi.json")[2])
    assert document["components"]["securitySchemes"] == {"certificate": {"type": "mutualTLS"}}
    assert document["paths"]["/predict"]["post"]["security"] == [{"certificate": []}]
    assert "403" in document["paths"]["/predict"]["post"]["responses"]
    assert "security" not in document["paths"]["/readyz"]["get"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_certificate_that_is_not_good_ends_the_connection(mutual, ours, theirs, version):
    before = mutual.trusting
    try:
        for shown in (theirs.issue("client"), ours.issue("old", days=-1)):
            mutual.trusting = ours.trusted(shown)
            mutual.trusting.minimum_version = mutual.trusting.maximum_version = version
            for path in ("/livez", "/metrics"):
                with pytest.raises((OSError, http.client.HTTPException)):
                    mutual.ask("GET", path)
    finally:
        mutual.trusting = before
    assert predicted(mutual) == 200
    log = "".join(mutual.log)
    assert "came to nothing: certificate has expired" in log
    assert "came to nothing: unable to get local issuer certificate" in log


def test_a_token_is_asked_for_beside_a_certificate_and_metrics_may_be_open(ours, host, client, model):
    given = files(host, tls_client_ca=ours.path, token=TOKEN, open_metrics=1)
    with Server(model, trusting=ours.trusted(client), **given) as server:
        bearer = {"authorization": f"Bearer {TOKEN}"}
        assert (predicted(server), predicted(server, **bearer)) == (401, 200)
        server.trusting = ours.trusted()
        assert (predicted(server), predicted(server, **bearer)) == (403, 403)
        assert server.metric("modelpack_ready") == 1


def test_the_health_check_needs_no_certificate_of_its_own(mutual, ours, host):
    command = [sys.executable, "-m", "modelpack.server", "--healthcheck", "--port", str(mutual.port)]

    def checked(**given: object) -> int:
        environment = os.environ | {f"MODELPACK_{name.upper()}": str(value) for name, value in given.items()}
        return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=30).returncode

    assert checked(**files(host, tls_client_ca=ours.path)) == 0
    assert checked() == 1, "a server that speaks TLS answers nobody in plain text"


def test_grpc_demands_a_certificate_in_the_handshake(ours, theirs, host, client, model):
    def ready(shown: Certificate | None, trusted: Authority = ours):
        pair = (shown.key.read_bytes(), shown.path.read_bytes()) if shown else (None, None)
        credentials = grpc.ssl_channel_credentials(trusted.path.read_bytes(), *pair)
        with grpc.secure_channel(server.grpc_address, credentials) as channel:
            stub = stubs.GRPCInferenceServiceStub(channel)
            return stub.ServerReady(pb.ServerReadyRequest(), timeout=20).ready

    with Server(model, trusting=ours.trusted(), grpc_port=0, **files(host, tls_client_ca=ours.path)) as server:
        assert ready(client)
        for shown, trusted in [
            (None, ours),
            (theirs.issue("other"), ours),
            (ours.issue("late", -1), ours),
            (client, theirs),
        ]:
            with pytest.raises(grpc.RpcError) as refused:
                ready(shown, trusted)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert ready(client)


def served(server: Server, trusted: ssl.SSLContext) -> str:
    with server.connect() as connection:
        return named(connection, trusted)


def named(connection: socket.socket, trusted: ssl.SSLContext) -> str:
    """Give the name in the server's certificate."""
    with trusted.wrap_socket(connection, server_hostname="localhost") as secured:
        return dict(pair for (pair,) in secured.getpeercert()["subject"])["commonName"]


@pytest.mark.parametrize("workers", [1, 2])
def test_renewed_files_are_taken_without_a_signal_or_a_lost_request(ours, theirs, host, model, tmp_path, workers):
    path, key, clients = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "clients.pem"
    host.install(path, key)
    clients.write_bytes(ours.path.read_bytes())
    mine = ours.issue("client")
    trusting = ours.trusted(mine)
    given = {"tls_cert": path, "tls_key": key, "tls_client_ca": clients, "workers": workers}
    with Server(model, trusting=trusting, wait=False, **given) as server:
        wait_for(lambda: server.ask("GET", "/readyz")[0] == 200)
        outcomes: list[object] = []
        asking = threading.Thread(target=hammer, args=(server, outcomes, ROWS), daemon=True)
        asking.start()
        assert served(server, trusting) == "host"
        ours.issue("renewed").install(path, key)
        wait_for(lambda: {served(server, trusting) for _ in range(8)} == {"renewed"})
        key.write_text("nothing")
        server.line("TLS stays as it is: .*has no private key")
        assert served(server, trusting) == "renewed"
        ours.issue("again").install(path, key)
        wait_for(lambda: {served(server, trusting) for _ in range(8)} == {"again"})
        assert len(outcomes) > 5
        server.stop()
        asking.join(20)
        assert [outcome for outcome in outcomes if outcome != 200] == []


def asked(
    server: Server, trusting: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool]:
    """Ask for what needs a certificate, with a session of before; give the session, and whether it was resumed."""
    with (
        server.connect() as plain,
        trusting.wrap_socket(plain, server_hostname="localhost", session=session) as secured,
    ):
        secured.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        if not receive_all(secured).startswith(b"HTTP/1.1 200"):
            raise ConnectionError("not let in")
        return secured.session, bool(secured.session_reused)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_whom_a_new_authority_does_not_know_is_not_let_in_by_a_session_of_before(
    ours, theirs, host, client, model, tmp_path, version
):
    clients = tmp_path / "clients.pem"
    clients.write_bytes(ours.path.read_bytes())
    trusting, new = ours.trusted(client), ours.trusted(theirs.issue("new"))
    trusting.maximum_version = version
    with Server(model, trusting=trusting, **files(host, tls_client_ca=clients)) as server:
        session, _ = asked(server, trusting, None)
        session, resumed = asked(server, trusting, session)
        assert resumed
        clients.write_bytes(theirs.path.read_bytes())
        wait_for(lambda: let_in(server, new))
        with pytest.raises(OSError):  # noqa: PT011 - closed, reset or refused, as it happens
            asked(server, trusting, session)


def test_grpc_takes_renewed_files_too(ours, host, model, tmp_path):
    path, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    host.install(path, key)
    with Server(model, trusting=ours.trusted(), tls_cert=path, tls_key=key, grpc_port=0) as server:
        address, port = server.grpc_address.split(":")

        def name() -> str:
            trusting = ours.trusted()
            trusting.set_alpn_protocols(["h2"])
            with socket.create_connection((address, int(port)), timeout=20) as plain:
                return named(plain, trusting)

        assert name() == "host"
        ours.issue("renewed").install(path, key)
        wait_for(lambda: name() == "renewed")


def test_idle_connections_and_half_handshakes_do_not_hold_up_the_end(ours, host, model):
    with Server(model, trusting=ours.trusted(), **files(host)) as server:
        idle = http.client.HTTPSConnection("127.0.0.1", server.port, context=server.trusting)
        idle.request("GET", "/livez")
        assert idle.getresponse().read()
        with server.connect() as silent:
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 15, "the drain lasts 25 seconds when somebody holds it up"
            assert receive_all(silent) == b""
        idle.close()


def test_no_request_is_lost_when_a_busy_server_stops(ours, host, model):
    with Server(model, trusting=ours.trusted(), drain_delay=0.2, **files(host)) as server:
        outcomes = stopped_busy(server, 4, 20, ROWS)
    lost = [outcome for outcome in outcomes if outcome != 200]
    assert len(lost) <= 1, "a handshake may still cross the close, inside the kernel; more than that are ours"


def test_handshakes_are_limited_in_number_and_time(ours, host, model):
    given = files(host, max_connections=2, head_timeout=0.5)
    with Server(model, trusting=ours.trusted(), **given) as server:
        silent = [server.connect() for _ in range(4)]
        began = time.monotonic()
        for each in silent:
            each.settimeout(10)
            assert receive_all(each) == b""
            each.close()
        assert time.monotonic() - began < 30
        wait_for(lambda: let_in(server, ours.trusted()))


def test_what_is_no_certificate_prevents_a_start(ours, theirs, host, tmp_path):
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", host.key, "-aes256", "-passout", "pass:secret", "-out", locked], check=True
    )
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    other = theirs.issue("other")
    for cert, key, clients, message in [
        ("/there/is/none.pem", host.key, "", "certificate for TLS cannot be read: .*/there/is/none.pem"),
        (host.path, tmp_path, "", "private key for TLS cannot be read: .*directory"),
        (host.path, host.key, "/no/ca", "certificate for TLS cannot be read: .*/no/ca"),
        (host.path, other.key, "", "private key in .*other.key is not that of the certificate in .*host.pem"),
        (host.key, host.key, "", "host.key has no certificate in PEM"),
        (host.path, host.path, "", "host.pem has no private key in PEM"),
        (host.path, locked, "", "locked.key is encrypted: give it without a passphrase"),
        (broken, host.key, "", "TLS cannot be had with .*broken.pem"),
        (host.path, host.key, broken, "TLS cannot be had with .*broken.pem"),
    ]:
        with pytest.raises(StartError, match=message):
            Tls(Settings(tls_cert=str(cert), tls_key=str(key), tls_client_ca=str(clients)))


def test_serving_from_python_speaks_tls_where_the_environment_says_so(ours, host, model):
    """As `modelpack serve` does."""
    code = "import sys, pathlib, modelpack.server; sys.exit(modelpack.server.serve(pathlib.Path(sys.argv[2]), port=0))"
    with Server(model, command=[sys.executable, "-c", code], trusting=ours.trusted(), **files(host)) as server:
        assert predicted(server) == 200


@pytest.mark.parametrize("given", [("CERT",), ("KEY",), ("CLIENT_CA",), ("KEY", "CLIENT_CA"), ("CERT", "CLIENT_CA")])
def test_half_of_tls_is_an_error(given):
    with pytest.raises(StartError, match="TLS needs both"):
        Settings.read({f"MODELPACK_TLS_{name}": "/a.pem" for name in given})


@pytest.mark.parametrize("workers", [1, 2])
def test_a_start_without_files_is_one_line(model, workers):
    environment = os.environ | {
        "MODELPACK_TLS_CERT": "/no.pem",
        "MODELPACK_TLS_KEY": "/no.key",
        "MODELPACK_WORKERS": str(workers),
    }
    command = [sys.executable, "-m", "modelpack.server", "--model", str(model), "--host", "127.0.0.1", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: the certificate for TLS cannot be read: ")
    assert "Traceback" not in ended.stderr


def test_a_certificate_that_clients_will_refuse_is_told(ours, model):
    with Server(model, trusting=ours.trusted(), **files(ours.issue("past", days=-1))) as server:
        assert "clients will refuse the certificate" in "".join(server.log)
        assert "certificate has expired" in "".join(server.log)
        server.process.send_signal(signal.SIGHUP)
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            predicted(server)
