"""What the processes of the tests of crews compute; each case is called in every one of them, and gives JSON."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nets
from modelpack.artifact import Artifact
from modelpack.errors import StageError
from modelpack.numerics.fake_quantization import rounding
from modelpack.numerics.training import crew, norms, sharing, spread
from modelpack.stages.distill import distill
from support import Rows, run_stage

torch.set_num_threads(1)
COUNTS = (7, 2, 1)


def lay(rows: int) -> list[dict[str, np.ndarray]]:
    """Batches of one column; the last ones leave processes without rows."""
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((count, 3, 4, 4))} for count in (*COUNTS, rows)]


def talk() -> dict:
    """What processes tell each other."""
    mine = crew.rank()
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(True), "c": torch.zeros(0, 4)}
    shown = crew.shown(tensors if mine == 0 else None)
    return {
        "told": crew.told({"x": [1, None, "é"]} if mine == 0 else None),
        "shown": all(torch.equal(shown[name], value) for name, value in tensors.items()),
        "compared": crew.compared([mine, 5]),
        "summed": crew.summed({"a": 1.5, **({"b": 2.0} if mine == 0 else {"never": 9.0})}),
        "turns": [[len(batch["x"]), counts] for batch, counts in sharing.in_turn(lay(5)[:3])],
        "shares": [[len(batch["x"]), share.rows, share.of] for batch, share in sharing.dealt(lay(5))],
        "total": crew.total(torch.tensor([1.0 + mine])).tolist(),
    }


def disagree(kind: str) -> str:
    """Data that are not the same everywhere."""
    given = lay(5)
    if crew.rank() == 1:
        if kind == "early":
            given = given[:2]
        elif kind == "fewer":
            given[1] = {"x": given[1]["x"][:1]}
        else:
            given[1]["x"] = given[1]["x"] + 1
    try:
        for _ in sharing.dealt(given):
            pass
    except StageError as error:
        return str(error)
    return ""


def fall_short() -> str:
    """One process whose data have fewer batches in a pass."""
    try:
        sharing.expect_as_many(5)
        sharing.expect_as_many(5 - 2 * crew.rank())
    except StageError as error:
        return str(error)
    return ""


def normalize(layer: str, momentum: float | None, affine: bool) -> dict:
    """How far a synchronized batch norm, and the losses that look at all rows, are from those of one process."""
    torch.manual_seed(0)
    one = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, momentum=momentum, affine=affine), nn.Tanh()).double()
    if layer == "1d":
        one = nn.Sequential(
            nn.Flatten(), nn.Linear(48, 5), nn.BatchNorm1d(5, momentum=momentum, affine=affine)
        ).double()
    many = copy.deepcopy(one)
    worst: dict[str, float] = {}
    given = [batch for batch in lay(4) if len(batch["x"]) > 1]

    def loss(module, x):
        y = module(x)
        alike = sharing.everyone(y.flatten(1))
        return (y**3).mean() + y.flatten(1).std(1).mean() + (alike @ alike.T).square().mean()

    for batch, (rows, share) in zip(given, sharing.dealt(given), strict=True):
        whole, part = torch.from_numpy(batch["x"]), torch.from_numpy(rows["x"])
        one.zero_grad()
        many.zero_grad()
        wanted = loss(one, whole)
        wanted.backward()
        with norms.synchronized(many), sharing.taking(share):
            found = loss(many, part) * share.weight
            spread = sharing.variance(part)
            found.backward()
        differences = {"loss": crew.total(found.detach()[None]) / crew.size() - wanted.detach()}
        differences["variance"] = spread - whole.float().var(correction=0)
        for (name, a), b in zip(one.named_parameters(), many.parameters(), strict=True):
            differences[name] = a.grad - crew.total(b.grad) / crew.size()
        for (name, a), b in zip(one.named_buffers(), many.buffers(), strict=True):
            differences[name] = a - b
        for name, value in differences.items():
            worst[name] = max(worst.get(name, 0.0), float(value.abs().max()))
    assert all("forward" not in vars(module) for module in many.modules())
    return worst


def follow() -> list:
    """Ranges that follow the activations of all rows, after each batch."""
    found = []
    for share in (100.0, 99.0):
        module = rounding.ObservedBytes(share, pace=1.0)
        module.follow(10)
        for batch, part in sharing.dealt(lay(4)):
            with norms.synchronized(module), sharing.taking(part):
                module(torch.from_numpy(batch["x"]))
            found.append([float(module.low), float(module.high)])
    return found


class Sum(nn.Module):
    """A linear layer whose second part only some batches use; the loss is what it gives, averaged over rows."""

    learned = None

    def __init__(self) -> None:
        super().__init__()
        self.used, self.rare = (nn.Linear(48, 1, bias=False).double() for _ in range(2))

    def losses(self, student, inputs, beside):
        x = inputs["x"].flatten(1)
        return {"loss": (student.used(x) + (student.rare(x) if len(beside) else 0)).mean()}


def exchange() -> dict:
    """How far gradients are from the mean over rows, before and after the processes exchanged them."""
    student = Sum()
    given = [batch for batch in lay(4) if len(batch["x"]) > 1]
    total = sum(len(batch["x"]) for batch in given)
    gradients = [torch.from_numpy(batch["x"]).flatten(1).sum(0) / total for batch in given]
    found = {}
    with spread.spread(student, student, "ddp", torch.device("cpu")) as pupil:
        for place, (batch, share) in enumerate(sharing.dealt(given), 1):
            last = place == len(given)
            with contextlib.nullcontext() if last else pupil.adding():
                beside = {} if last else {"rare": torch.ones(1)}
                loss = pupil.losses({"x": torch.from_numpy(batch["x"])}, beside, share)["loss"]
                (loss * share.of / total).backward()
            wanted = {"used": sum(gradients[:place]), "rare": sum(gradients[: min(place, len(given) - 1)])}
            found[place] = {
                name: float((getattr(student, name).weight.grad[0] - value).abs().max())
                for name, value in wanted.items()
            }
    return found


def small() -> dict:
    """All of the above, in one go."""
    return {
        "talk": talk(),
        "disagree": {kind: disagree(kind) for kind in ("early", "fewer", "other")},
        "fall_short": fall_short(),
        "follow": follow(),
        "exchange": exchange(),
        "2d": normalize("2d", 0.1, True),
        "1d": normalize("1d", None, False),
    }


class Double(nn.Module):
    """A net that computes in float64, so that rounding does not hide what differs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()


class DoubleCnn(Double):
    def forward(self, image):
        return self.net(image.double())


class DoubleEncoder(Double):
    def forward(self, input_ids, attention_mask):
        return self.net(input_ids, attention_mask)


def cnn(width: int = 16) -> nn.Module:
    """The small CNN in float64."""
    return DoubleCnn(nets.cnn(width))


def encoder(hidden: int = 64) -> nn.Module:
    """The small encoder in float64."""
    return DoubleEncoder(nets.encoder(hidden=hidden))


def images(count: int) -> Rows:
    """Images whose label can be learnt."""
    generator = np.random.default_rng(count)
    label = generator.integers(0, 10, count)
    image = generator.standard_normal((count, 1, 16, 16)) + label[:, None, None, None] / 5
    return Rows({"image": image.astype(np.float32), "label": label}, 12)


def texts(count: int) -> Rows:
    """Tokens, some of which are hidden."""
    generator = np.random.default_rng(count)
    mask = (np.arange(9) < generator.integers(2, 10, (count, 1))).astype(np.int64)
    return Rows({"input_ids": generator.integers(0, 50, (count, 9)), "attention_mask": mask}, 12)


CASES = {
    # 49 rows in batches of 12: the last one has a row for one process alone, and joins the batch before it.
    "cnn": (images, 49, {"alpha": 0.5, "ema": 0.9}),
    "encoder": (texts, 43, {"accumulate": 2}),
}


def everything(root: str, models: dict) -> dict:
    """The small cases, and students trained in both ways: to start processes takes longer than what they compute."""
    return {"small": small(), **{parallel: train(root, models, parallel) for parallel in ("ddp", "fsdp")}}


def train(root: str, models: dict, parallel: str, device: str = "cpu") -> dict:
    """Train a student of each case."""
    found = {}
    for name, (source, rows, settings) in CASES.items():
        made = run_stage(
            Path(root) / f"{name}-{parallel}-{crew.size()}-{crew.rank()}",
            distill,
            {"data": "train", "eval_data": "val", "epochs": 2, "lr": 1e-2, "parallel": parallel, **settings},
            model=Artifact.load(Path(models[name][0])),
            steps={"model": Artifact.load(Path(models[name][1]))},
            data={"train": source(rows), "val": source(rows - 8)},
            device=device,
        )
        found[name] = {"id": made.id, "path": str(made.path), "history": made.manifest.record["results"]["history"]}
    return found


def trained_on_one_gpu(root: str, models: dict) -> dict:
    """Train students on a GPU that the processes share."""
    return train(root, models, "ddp", "cuda:0")


def over_nccl() -> dict:
    """What a crew of one tells itself over NCCL; and what torch's own ways of spreading a model do over it."""
    device = torch.device("cuda:0")
    here, there = torch.ones(3), torch.ones(3, device=device)
    for tensor in (here, there):
        torch.distributed.all_reduce(tensor)
        torch.distributed.broadcast(tensor, 0)
    torch.manual_seed(0)
    module, x = nets.encoder().to(device), torch.arange(24, device=device).view(2, 12)
    mask = torch.ones_like(x)
    wanted = module(x, mask)["logits"].detach()
    replica = nn.parallel.DistributedDataParallel(copy.deepcopy(module))
    replica(x, mask)["logits"].square().sum().backward()
    parts = copy.deepcopy(module)
    spread._shard(parts, device)
    parts(x, mask)["logits"].square().sum().backward()
    slopes = [parameter.grad for parameter in replica.module.parameters()]
    shards = [parameter.grad.full_tensor() for parameter in parts.parameters()]
    return {
        "backend": torch.distributed.get_backend(),
        "sums": [tensor.tolist() for tensor in (here, there)],
        "output": torch.allclose(parts(x, mask)["logits"], wanted, atol=1e-5),
        "gradients": all(torch.allclose(a, b, atol=1e-5) for a, b in zip(slopes, shards, strict=True)),
        "size": crew.size(),
        "told": crew.told({"x": 1}),
    }
