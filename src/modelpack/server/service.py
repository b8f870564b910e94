"""What every protocol works with: the models, the limits, the figures, and whether the server takes work."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING, Any

from . import spans, tls
from .access import Access
from .board import Board
from .catalog import Catalog
from .changes import Changes
from .faults import Forbidden
from .metrics import Metrics
from .patience import Patience
from .statistics import Ledger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import numpy as np

    from .batching import Run
    from .model import Answer, Model
    from .settings import Settings

_log = logging.getLogger("modelpack.server")
_LAST_SPANS = 3.0  # seconds
READY, LOADING, DRAINING = "ready", "loading", "draining"


class Service:
    """The server without any protocol.

    Args:
        settings: Limits, and the directory of the models.
        card: What is known about the model of a directory that is one model; None reads its `card.json`.
        board: Where all workers count; None for a server that is one process.
        worker: The number of this one, from 0.

    Raises:
        StartError: When there is no model with a readable signature, or tokens or certificates are none.
    """

    def __init__(
        self, settings: Settings, card: Mapping[str, Any] | None = None, board: Board | None = None, worker: int = 0
    ) -> None:
        self.settings = settings
        self.access = Access(settings)
        self.patience = Patience(settings.body_timeout)
        self.tls = tls.load(settings)
        self.spans = spans.begin()
        board = board or Board()
        self.metrics, self.ledger = Metrics(board, worker), Ledger(board, worker)
        changes = Changes(board, worker)
        self.catalog = Catalog(settings, card, self._ran, self.ledger, changes=changes, changed=self._describe)
        self.state = LOADING
        if (secured := self.tls) is not None:
            self.metrics.until = lambda: secured.until
        self.metrics.watch(self.metrics.depth, lambda: sum(model.waiting for model in self.catalog.models))
        self.metrics.watch(self.metrics.serving, lambda: float(self.state == READY))

    @property
    def ready(self) -> bool:
        """Whether every model answers, in every worker at the start, and the server is not stopping."""
        return self.state == READY and self.metrics.started

    async def load(self) -> None:
        """Load and warm up every model; only then is the server ready.

        Raises:
            StartError: When one cannot be served.
        """
        await self.catalog.start()
        self._describe()
        if self.state == LOADING:
            self.state = READY
            self.metrics.refresh()
            served = ", ".join(f"{model.name} {model.version}" for model in self.catalog.models)
            threads = max((model.engine.threads for model in self.catalog.models if model.engine), default=0)
            _log.info("ready: %s; threads of one inference: %d", served or "no model yet", threads)

    def _describe(self) -> None:
        from .engine import VERSION

        self.metrics.load = sum(model.seconds for model in self.catalog.models)
        self.metrics.describe([(model.name, model.version, model.card) for model in self.catalog.models], VERSION)

    def drain(self) -> None:
        """Say "not ready" from now on; work is still served."""
        self.state = DRAINING

    def close(self) -> None:
        """End the threads."""
        self.catalog.close()
        if self.spans:
            self.spans.close(min(_LAST_SPANS, self.settings.drain_timeout))

    async def infer(
        self, model: Model, feed: Mapping[str, np.ndarray], arrived: float, gone: Callable[[], bool]
    ) -> Answer:
        """Run a model, which the request holds, within the deadline that began when the request arrived.

        Args:
            model: From `catalog.find`.
            feed: Inputs by name.
            arrived: When, by `perf_counter`.
            gone: Tells, from any thread, whether the client has left.

        Raises:
            Fault: See `Model.infer`.
        """
        left = self.settings.deadline - (perf_counter() - arrived)
        answer = await model.infer(feed, asyncio.get_running_loop().time() + left, gone)
        self.metrics.queue.observe(answer.queued)
        if self.spans:
            self.spans.ran(model, answer)
        return answer

    def _ran(self, run: Run) -> None:
        self.metrics.inference.observe(run.ended - run.started)
        self.metrics.batch.observe(run.rows)

    async def change(self, work: Callable[[], Awaitable[Model]]) -> Model:
        """Change what is served by all workers, as a client asked, and give the model that is now current.

        Raises:
            Forbidden: When this server does not let clients do so.
            Fault: What `work` raises.
        """
        if not self.settings.allow_loading:
            off = "this server does not let clients change its models: MODELPACK_ALLOW_LOADING=1 switches it on"
            raise Forbidden(off)
        return await work()

    async def refresh(self) -> None:
        """Read the tokens and the directory of the models again, for the operator."""
        self.access.refresh()
        await self.catalog.refresh()
