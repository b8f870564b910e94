"""A SageMaker endpoint made to serve a model: created, updated, rolled back, deleted; each may be asked for again.

What is served next and what was served before are endpoint configurations, which never change once made; tags on the
endpoint remember which was which.

Source: Amazon SageMaker API reference; "Endpoint status" of DescribeEndpoint.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelpack.deploy.sagemaker import OWNER
from modelpack.errors import MissingError, StageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from modelpack.deploy.sagemaker import Requests

BEFORE, LEFT = "modelpack:previous", "modelpack:rolled-back-from"
"""Tags of an endpoint: the configuration before the present one; the one that it was rolled back from."""
POLL = 5.0
"""Seconds between two questions whether the endpoint is there."""
_MOVING = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"})


@dataclass
class Endpoint:
    """One endpoint, through one client.

    Attributes:
        client: boto3's client of SageMaker.
        name: The endpoint's name.
        limit: Seconds to wait for it at most, in each command.
        tell: Receives each thing that was done.
        done: All of them.
    """

    client: Any
    name: str
    limit: float
    tell: Callable[[str], None]
    done: list[str] = field(default_factory=list)

    def apply(self, asked: Requests) -> None:
        """Make the endpoint serve what is asked: create it, or update it; nothing where it does so already.

        Raises:
            StageError: When SageMaker refuses, fails or takes too long.
            MissingError: When it cannot be reached.
        """
        with _answers(self.name):
            self._ensure("model", "ModelName", asked.model)
            self._ensure("endpoint_config", "EndpointConfigName", asked.config)
            wanted = asked.config["EndpointConfigName"]
            found = self._settled()
            if found is None:
                self.client.create_endpoint(**asked.endpoint)
                self._say(f"created endpoint {self.name} with {wanted}")
            elif found["EndpointConfigName"] == wanted:
                self._say(f"endpoint {self.name} has {wanted} already")
            else:
                self._tag(found, BEFORE, found["EndpointConfigName"], LEFT)
                self.client.update_endpoint(EndpointName=self.name, EndpointConfigName=wanted)
                self._say(f"updated endpoint {self.name} from {found['EndpointConfigName']} to {wanted}")
            self._arrived(wanted)

    def rollback(self) -> None:
        """Go back to the configuration that was served before; nothing where that was done already.

        Raises:
            StageError: When there is nothing to go back to, or SageMaker refuses, fails or takes too long.
            MissingError: When it cannot be reached.
        """
        with _answers(self.name):
            found = self._settled()
            if found is None:
                raise StageError("there is no such endpoint", where=self.name, then="--name names another")
            current, tags = found["EndpointConfigName"], self._tags(found["EndpointArn"])
            before = tags.get(BEFORE)
            if before == current or (before is None and LEFT in tags):
                self._say(f"endpoint {self.name} is back at {current} already")
                return
            if before is None or self._asked("endpoint_config", "EndpointConfigName", before) is None:
                raise StageError("it has served nothing else before", where=self.name, then="--apply another run")
            self.client.update_endpoint(EndpointName=self.name, EndpointConfigName=before)
            self._say(f"rolled endpoint {self.name} back from {current} to {before}")
            self._arrived(before)
            self._tag(found, LEFT, current, BEFORE)

    def delete(self) -> None:
        """Delete the endpoint, and every configuration and model that was made for it; nothing where none is.

        Raises:
            StageError: When SageMaker refuses or takes too long.
            MissingError: When it cannot be reached.
        """
        with _answers(self.name):
            if self._settled(failed=True) is not None:
                self.client.delete_endpoint(EndpointName=self.name)
                self._wait(lambda: self._describe() is None, "still there")
                self._say(f"deleted endpoint {self.name}")
            for kind, listed, key in (
                ("endpoint_config", "EndpointConfigs", "EndpointConfigName"),
                ("model", "Models", "ModelName"),
            ):
                pages = self.client.get_paginator(f"list_{kind}s").paginate(NameContains=self.name)
                for item in [item for page in pages for item in page[listed]]:
                    if self._tags(item[key.replace("Name", "Arn")]).get(OWNER) == self.name:
                        getattr(self.client, f"delete_{kind}")(**{key: item[key]})
                        self._say(f"deleted {kind.replace('_', ' ')} {item[key]}")
            if not self.done:
                self._say(f"there is nothing called {self.name}")

    def _say(self, text: str) -> None:
        self.done.append(text)
        self.tell(text)

    def _ensure(self, kind: str, key: str, request: Any) -> None:
        """Create what is not there yet; its name says what is in it, so one that is there is right."""
        name, words = request[key], kind.replace("_", " ")
        if self._asked(kind, key, name) is not None:
            self._say(f"{words} {name} is there already")
            return
        getattr(self.client, f"create_{kind}")(**request)
        self._say(f"created {words} {name}")

    def _asked(self, kind: str, key: str, name: str) -> dict[str, Any] | None:
        """Describe a thing; None when there is none. SageMaker has no code of its own for that."""
        from botocore.exceptions import ClientError

        try:
            found: dict[str, Any] = getattr(self.client, f"describe_{kind}")(**{key: name})
        except ClientError as error:
            told = error.response["Error"]
            if told["Code"] == "ValidationException" and "could not find" in told["Message"].lower():
                return None
            raise
        return found

    def _describe(self) -> dict[str, Any] | None:
        return self._asked("endpoint", "EndpointName", self.name)

    def _settled(self, *, failed: bool = False) -> dict[str, Any] | None:
        """Give the endpoint once nothing moves any more, None when there is none; only one that was made here.

        Raises:
            StageError: When it is another's, or failed and that is not allowed.
        """
        found = self._describe()
        if found is None:
            return None
        if self._tags(found["EndpointArn"]).get(OWNER) != self.name:
            raise StageError(
                "an endpoint of this name is there, and modelpack did not make it",
                where=self.name,
                then="choose another with --name",
            )
        self._wait(lambda: (self._describe() or {}).get("EndpointStatus") not in _MOVING, "busy with another change")
        found = self._describe()
        if found is not None and found["EndpointStatus"] == "Failed" and not failed:
            raise StageError(
                f"the endpoint failed: {found.get('FailureReason', 'no reason was given')}",
                where=self.name,
                then="--delete it, then --apply",
            )
        return found

    def _arrived(self, config: str) -> None:
        """Wait until the endpoint serves a configuration.

        Raises:
            StageError: When it does not.
        """
        self._wait(lambda: (self._describe() or {}).get("EndpointStatus") not in _MOVING, "not in service")
        found = self._describe() or {}
        status, present = found.get("EndpointStatus"), found.get("EndpointConfigName")
        if status != "InService" or present != config:
            reason = found.get("FailureReason", "no reason was given")
            raise StageError(
                f"the endpoint is {status} with {present}, asked for was {config}: {reason}",
                where=self.name,
                then="its log in CloudWatch says more",
            )
        self._say(f"endpoint {self.name} is in service with {config}")

    def _wait(self, over: Callable[[], bool], state: str) -> None:
        end = time.monotonic() + self.limit
        while not over():
            if time.monotonic() >= end:
                raise StageError(
                    f"it is {state} after {self.limit:g} seconds", where=self.name, then="the same command waits again"
                )
            time.sleep(min(POLL, self.limit))

    def _tags(self, arn: str) -> dict[str, str]:
        pages = self.client.get_paginator("list_tags").paginate(ResourceArn=arn)
        return {tag["Key"]: tag["Value"] for page in pages for tag in page["Tags"]}

    def _tag(self, found: dict[str, Any], key: str, value: str, gone: str) -> None:
        """Remember one thing in place of another."""
        arn = found["EndpointArn"]
        self.client.delete_tags(ResourceArn=arn, TagKeys=[key, gone])
        self.client.add_tags(ResourceArn=arn, Tags=[{"Key": key, "Value": value}])


def connect(name: str, limit: float, tell: Callable[[str], None]) -> Endpoint:
    """Open a client as AWS's own tools do: region, credentials and addresses from the environment and ``~/.aws``.

    Raises:
        MissingError: Without boto3.
        UsageError: Without a region.
    """
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, NoRegionError
    except ImportError as error:
        raise MissingError(f"this needs '{error.name}'", then="pip install 'modelpack[sagemaker]'") from error
    try:
        client = boto3.client("sagemaker")
    except NoRegionError as error:
        raise UsageError("no region of AWS is chosen", then="set AWS_DEFAULT_REGION, or `aws configure`") from error
    except (BotoCoreError, ValueError) as error:
        raise UsageError(str(error), where="AWS", then="`aws configure` writes settings that can be read") from error
    return Endpoint(client, name, limit, tell)


@contextlib.contextmanager
def _answers(where: str) -> Iterator[None]:
    """Turn what AWS answers into errors that say what to do.

    Raises:
        StageError: When it refuses.
        MissingError: When it cannot be asked.
    """
    from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

    try:
        yield
    except ClientError as error:
        told = error.response["Error"]
        words = " ".join(str(told.get("Message") or told.get("Code")).split())  # a proxy between answers with a page
        raise StageError(f"SageMaker refuses: {words:.300}", where=where, then=str(told.get("Code", ""))) from error
    except ParamValidationError as error:
        raise StageError(f"SageMaker would refuse this: {error}", where=where) from error
    except BotoCoreError as error:
        raise MissingError(
            f"SageMaker cannot be asked: {error}", where=where, then="`aws sts get-caller-identity` must work"
        ) from error
