"""A SageMaker endpoint created, updated, rolled back and deleted, by boto3 against a server that answers as AWS does."""

import functools
import os
import sys
import threading
import urllib.request
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError
from moto.core.responses import ActionResult
from moto.sagemaker.models import SageMakerModelBackend
from moto.sagemaker.responses import SageMakerResponse
from moto.server import ThreadedMotoServer

from commands import Shell
from deploying import ECR, FACTS, ROLE, pulled_from_ecr
from image_support import onnx_artifact
from modelpack.deploy import endpoint, sagemaker
from modelpack.deploy.facts import Wish
from modelpack.errors import MissingError, StageError, UsageError

WISH = Wish(role=ROLE)
CONTROL: dict[str, object] = {}
"""How the server behaves: seconds of each change counted in questions, and what becomes of it."""


def update_endpoint(backend, name: str, config: str):
    """Do what the server lacks: the endpoint moves to another configuration, and takes its time."""
    found = backend.endpoints[name]
    backend.describe_endpoint_config(config)
    found.asked = CONTROL.get("questions", 0)
    found.endpoint_status = "Updating"
    if CONTROL.get("refuse"):
        found.failure_reason = "the image could not be pulled"
    else:
        found.endpoint_config_name = config
    return found


def describe_endpoint(backend, name: str):
    """Answer as before, and let a change come to its end after some questions."""
    described = ORIGINAL(backend, name)
    found = backend.endpoints[name]
    if found.endpoint_status in ("Updating", "Creating"):
        if found.asked <= 0:
            found.endpoint_status = CONTROL.get("ends", "InService")
        found.asked -= 1
    return described


ORIGINAL = SageMakerModelBackend.describe_endpoint


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SageMakerModelBackend, "update_endpoint", update_endpoint, raising=False)
        patch.setattr(SageMakerModelBackend, "describe_endpoint", describe_endpoint)
        patch.setattr(
            SageMakerResponse,
            "update_endpoint",
            lambda self: ActionResult({
                "EndpointArn": self.sagemaker_backend.update_endpoint(
                    self._get_param("EndpointName"), self._get_param("EndpointConfigName")
                ).arn
            }),
            raising=False,
        )  # fmt: skip
        running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        host, port = running.get_host_and_port()
        yield f"http://{host}:{port}"
        running.stop()


@pytest.fixture
def aws(server, monkeypatch):
    """The environment that AWS's own tools read, and nothing of an earlier test on the server."""
    for key, value in {
        "AWS_ENDPOINT_URL": server, "AWS_DEFAULT_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "NO_PROXY": "*", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    reset = urllib.request.Request(f"{server}/moto-api/reset", b"", method="POST")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(reset, timeout=120).close()
    CONTROL.clear()
    monkeypatch.setattr(endpoint, "POLL", 0.01)
    return server


@functools.cache
def client(_address: str):
    """Open one client for all: reading what SageMaker can do takes a third of a second."""
    return endpoint.connect("any", 1, lambda _text: None).client


def open_endpoint(name="digits", limit=300.0):
    return endpoint.Endpoint(client(os.environ["AWS_ENDPOINT_URL"]), name, limit, lambda _text: None)


def asked(letter: str):
    return sagemaker.requests(pulled_from_ecr(reference=f"{ECR}@sha256:{letter * 64}"), WISH)


def apply(letter: str) -> list[str]:
    found = open_endpoint()
    found.apply(asked(letter))
    return found.done


def serving() -> str:
    """Give the letter of the image that the endpoint serves."""
    asking = open_endpoint().client
    config = asking.describe_endpoint(EndpointName="digits")["EndpointConfigName"]
    variant = asking.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"][0]
    return asking.describe_model(ModelName=variant["ModelName"])["PrimaryContainer"]["Image"][-1]


def there() -> tuple[int, int]:
    """Count models and configurations."""
    asking = open_endpoint().client
    return len(asking.list_models()["Models"]), len(asking.list_endpoint_configs()["EndpointConfigs"])


def test_an_endpoint_is_created_once(aws):
    first = apply("a")
    assert [line.split()[0] for line in first] == ["created", "created", "created", "endpoint"]
    assert serving() == "a"
    again = apply("a")
    assert "there already" in again[0]
    assert "already" in again[2]
    assert there() == (1, 1)


def test_updates_roll_back_and_forward(aws):
    apply("a")
    updated = apply("b")
    assert any(line.startswith("updated endpoint digits") for line in updated)
    assert serving() == "b"
    back = open_endpoint()
    back.rollback()
    assert serving() == "a"
    assert back.done[0].startswith("rolled endpoint digits back")
    again = open_endpoint()
    again.rollback()
    assert serving() == "a"
    assert again.done == [f"endpoint digits is back at {asked('a').config['EndpointConfigName']} already"]
    apply("c")
    assert serving() == "c"
    open_endpoint().rollback()
    assert serving() == "a"


def test_applying_again_does_not_forget_what_was_before(aws):
    for letter in "abb":
        apply(letter)
    open_endpoint().rollback()
    assert serving() == "a"


def test_a_rollback_that_was_cut_off_is_finished(aws, monkeypatch):
    apply("a")
    apply("b")
    with monkeypatch.context() as patch:
        patch.setattr(endpoint.Endpoint, "_tag", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_endpoint().rollback()
    assert serving() == "a"
    open_endpoint().rollback()
    assert serving() == "a"


def test_there_may_be_nothing_to_go_back_to(aws):
    with pytest.raises(StageError, match="no such endpoint"):
        open_endpoint().rollback()
    apply("a")
    with pytest.raises(StageError, match="served nothing else before"):
        open_endpoint().rollback()
    apply("b")
    open_endpoint().client.delete_endpoint_config(EndpointConfigName=asked("a").config["EndpointConfigName"])
    with pytest.raises(StageError, match="served nothing else before"):
        open_endpoint().rollback()
    assert serving() == "b"


def test_deleting_takes_what_was_made_and_no_more(aws):
    asking = open_endpoint().client
    asking.create_model(ModelName="digits-of-mine", ExecutionRoleArn=ROLE, PrimaryContainer={"Image": ECR})
    apply("a")
    apply("b")
    assert there() == (3, 2)
    gone = open_endpoint()
    gone.delete()
    assert there() == (1, 0)
    assert [line.split()[1] for line in gone.done] == ["endpoint", "endpoint", "endpoint", "model", "model"]
    again = open_endpoint()
    again.delete()
    assert again.done == ["there is nothing called digits"]


def test_an_endpoint_of_somebody_else_is_left_alone(aws):
    apply("a")
    asking = open_endpoint().client
    asking.create_endpoint(EndpointName="other", EndpointConfigName=asked("a").config["EndpointConfigName"])
    for act in ("rollback", "delete"):
        with pytest.raises(StageError, match="modelpack did not make it"):
            getattr(open_endpoint("other"), act)()
    assert asking.describe_endpoint(EndpointName="other")["EndpointStatus"] == "InService"


def test_it_waits_until_the_change_is_done(aws):
    apply("a")
    CONTROL["questions"] = 5
    apply("b")
    assert serving() == "b"
    CONTROL["questions"] = 10**9
    with pytest.raises(StageError, match=r"not in service after 0\.05 seconds") as caught:
        open_endpoint(limit=0.05).apply(asked("c"))
    assert "waits again" in caught.value.then
    with pytest.raises(StageError, match="busy with another change"):
        open_endpoint(limit=0.05).apply(asked("b"))


def test_what_amazon_takes_back_is_told_with_its_reason(aws):
    apply("a")
    CONTROL["refuse"] = True
    with pytest.raises(StageError, match="the image could not be pulled"):
        apply("b")
    assert serving() == "a"
    CONTROL.clear()
    assert apply("b")
    assert serving() == "b"


def test_a_failed_endpoint_is_deleted_and_made_anew(aws):
    apply("a")
    CONTROL["ends"] = "Failed"
    with pytest.raises(StageError, match="is Failed with"):
        apply("b")
    with pytest.raises(StageError, match="the endpoint failed") as caught:
        apply("b")
    assert caught.value.then == "--delete it, then --apply"
    CONTROL.clear()
    open_endpoint().delete()
    apply("b")
    assert serving() == "b"


def test_a_page_in_place_of_an_answer_is_told_in_a_line():
    page = {"Error": {"Code": "500", "Message": f"<html>\n<title>500 Internal Error</title>{' ' * 999}</html>\n"}}
    with pytest.raises(StageError) as caught, endpoint._answers("digits"):
        raise ClientError(page, "UpdateEndpoint")
    assert caught.value.what == "SageMaker refuses: <html> <title>500 Internal Error</title> </html>"


def test_refusals_and_silence_are_told(aws, monkeypatch):
    with pytest.raises(StageError, match="SageMaker refuses"):
        open_endpoint().apply(replace(asked("a"), config={**asked("a").config, "ProductionVariants": [
            {**asked("a").config["ProductionVariants"][0], "ModelName": "nobody"}]}))  # fmt: skip
    with pytest.raises(StageError, match="would refuse this"):
        open_endpoint().apply(replace(asked("b"), model={**asked("b").model, "Modell": 1}))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(MissingError, match="cannot be asked"):
        open_endpoint().delete()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nowhere")
    with pytest.raises(UsageError, match="Invalid endpoint"):
        open_endpoint()
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(UsageError, match="no region"):
        open_endpoint("another")


def test_without_boto3_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingError) as caught:
        endpoint.connect("digits", 1, lambda _text: None)
    assert caught.value.then == "pip install 'modelpack[sagemaker]'"


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    return Shell(tmp_path / "models", [], capsys, monkeypatch)


def test_the_command_does_all_of_it(aws, shell, tmp_path):
    model = onnx_artifact(tmp_path).id
    common = ("deploy", "sagemaker", model[:12], "--role", ROLE, "--name", "digits", "--json")
    one = shell(*common, "--apply", "--image", f"{ECR}@sha256:{'a' * 64}")
    assert one.code == 0, one.err
    assert one.json["endpoint"] == "digits"
    assert shell(*common, "--apply", "--image", f"{ECR}@sha256:{'b' * 64}").code == 0
    assert serving() == "b"
    assert shell("deploy", "sagemaker", "--rollback", "--name", "digits").code == 0  # needs no store
    assert serving() == "a"
    gone = shell("deploy", "sagemaker", "--delete", "--name", "digits")
    assert gone.code == 0
    assert gone.out.startswith("deleted model")
    assert there() == (0, 0)


@pytest.mark.parametrize(("arguments", "message"), [
    (("kubernetes", "--apply"), "--apply: this is for sagemaker"),
    (("kubernetes", "--role", ROLE), "--role: this is for sagemaker"),
    (("sagemaker", "--recipe", "x.yaml"), "--recipe: this is for ci"),
    (("sagemaker", "--wait", "9"), "--wait: files need no waiting"),
    (("sagemaker", "--rollback", "--output", "out"), "--output: --rollback writes no files"),
    (("sagemaker", "--delete", "--force"), "--force: --delete writes no files"),
    (("sagemaker", "--delete", "--name", "Bad Name"), "--name: 'Bad Name' is no name there"),
    (("sagemaker", "--apply", "--delete"), "one of --apply, --rollback and --delete"),
    (("sagemaker", "--apply"), "no run has succeeded in this store"),
])  # fmt: skip
def test_the_command_refuses_what_makes_no_sense(shell, arguments, message):
    result = shell("deploy", *arguments)
    assert result.code == 2
    assert message in result.err


def test_no_two_endpoints_share_a_server(aws):
    """Two at once, as two people would: each ends with what it asked for."""
    threads = [threading.Thread(target=lambda name=name: open_endpoint(name).apply(
        sagemaker.requests(pulled_from_ecr(), Wish(name=name, role=ROLE)))) for name in ("one", "two")]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    asking = open_endpoint().client
    assert {asking.describe_endpoint(EndpointName=name)["EndpointStatus"] for name in ("one", "two")} == {"InService"}
    open_endpoint("one").delete()
    assert asking.describe_endpoint(EndpointName="two")["EndpointStatus"] == "InService"
    assert there() == (1, 1)
    assert FACTS.name == "digits"
