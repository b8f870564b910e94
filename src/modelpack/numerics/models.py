"""Torch models on disk, as data: a factory, edits to what it builds, and tensors. Never a pickled module.

::

    model.json            {"factory", "arguments", "seed"}
    code/                 the factory's own files, so that the model can be rebuilt alone
    structure.json        of a model whose tree changed: what was done to it, in order
    edits.json            {module path: {attribute: value}}
    weights.safetensors   tensors by name
    signature.json        inputs and outputs
    quantizers.json       of a model trained to be quantized: what it rounds, and to which grids
    sparsity.json         of a sparse model: which weights hold zeros on purpose
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modelpack import canonical, usercode
from modelpack.errors import ModelpackError, StageError
from modelpack.numerics import checkpoints, edits, signatures, structure, tensorfile, tracing, zeros
from modelpack.numerics.calling import call, name_outputs
from modelpack.numerics.fake_quantization import quantizers, twin
from modelpack.numerics.randomness import seeded
from modelpack.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from modelpack.artifact import Artifact


def load(artifact: Artifact, device: str | torch.device = "cpu") -> nn.Module:
    """Rebuild a torch artifact's module exactly, in evaluation mode; one trained to be quantized rounds as its export.

    Raises:
        StageError: When its code cannot be imported or builds something else than it did, or its files hold anything
            but the data that they should.
    """
    module = _rebuild(artifact)
    if _holds(artifact, structure.NAME):
        structure.change(module, structure.decode(artifact.file(structure.NAME).read_bytes()))
    edits.apply(module, artifact.read_json("edits.json"))
    edits.put(module, load_file(artifact.file("weights.safetensors")))
    signature = artifact.read_json("signature.json")
    name_outputs(module, tuple(signature["outputs"]))
    module = module.eval()
    if _holds(artifact, quantizers.NAME):
        module = _rounding(module, signature, quantizers.read(artifact.file(quantizers.NAME)), torch.device(device))
    return module.to(device).eval()


def _rounding(
    module: nn.Module, signature: Mapping[str, Any], found: quantizers.Quantizers, device: torch.device
) -> nn.Module:
    """Trace a module again, as its export will, and put its rounding in."""
    inputs = {name: TensorSpec.model_validate(spec) for name, spec in signature["inputs"].items()}
    example = tracing.traceable(signatures.example(module, inputs, 2, 0, call), inputs, 0)
    program = tracing.capture(module, example, inputs, signature["outputs"], found.places.opset).exported_program
    assert program is not None, "checked when it was captured"
    program = tracing.on_device(program, device)
    traced = twin.Traced(module.to(device), program, tuple(inputs), tuple(signature["outputs"]))
    return twin.restored(traced, found)


def save(module: nn.Module, out: Path, like: Artifact) -> None:
    """Write an edited or retrained module as a torch artifact's payload; sparse like `like` if its zeros are there.

    Args:
        module: Built by `load`; its attributes and tensors may have changed, and its tree by `structure.change`.
        out: Directory to fill.
        like: The artifact it came from; factory, arguments, code and signature are taken over.

    Raises:
        StageError: When the module's tree was changed in any other way.
    """
    for item in like.manifest.files:
        if item.name.startswith("code/") or item.name in ("model.json", "signature.json"):
            _write(out / item.name, like.file(item.name).read_bytes())
    fresh = _rebuild(like)
    operations = structure.made(module)
    if operations:
        structure.change(fresh, operations)
        _write(out / structure.NAME, structure.encode(operations))
    _write_state(module, fresh, out)
    zeros.carry(like, out)


def write(
    out: Path,
    *,
    reference: str,
    base: Path,
    arguments: Mapping[str, Any],
    weights: Path | None,
    inputs: Mapping[str, TensorSpec],
    outputs: tuple[str, ...] | None,
    seed: int,
) -> tuple[nn.Module, tuple[str, ...]]:
    """Import a user's model: build it, fill in its weights, try it once, and write it as a torch artifact's payload.

    Args:
        out: Directory to fill.
        reference: The factory, ``file.py:callable`` or ``package.module:callable``.
        base: Directory that file names are relative to.
        arguments: Keyword arguments of the factory.
        weights: The user's checkpoint; the factory's own weights, drawn with `seed`, when None.
        inputs: The model's inputs, in the order of a positional call.
        outputs: Names for what it returns, or the keys to keep of a returned dict; as returned when None.
        seed: Seed of the factory's random numbers and of the trial's inputs.

    Returns:
        The module in evaluation mode on the CPU, and what the user should know.

    Raises:
        StageError: When the factory, the weights or the trial fail, with the reason.
    """
    module = _build(usercode.load(reference, base), arguments, seed, reference)
    notes = checkpoints.fill(module, checkpoints.read(weights), str(weights)) if weights is not None else ()
    # Written before the model is tried: some models change their buffers when they run.
    fresh = _build(usercode.load(reference, base), arguments, seed, reference)
    _write_state(module, fresh, out)
    described = signatures.probe(module.eval(), inputs, outputs, seed, call)
    name_outputs(module, tuple(described))
    for name, data in usercode.closure(reference, base).items():
        _write(out / "code" / name, data)
    _write(out / "model.json", canonical.encode({"factory": reference, "arguments": dict(arguments), "seed": seed}))
    _write(out / "signature.json", signatures.encode(inputs, described))
    return module, notes


@contextlib.contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turn whatever the user's forward() raises, there or in its gradients, into a `StageError` that says `what`."""
    try:
        yield
    except (ModelpackError, OSError):
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        raise StageError(
            f"{what}: {type(error).__name__}: {told if len(told) <= 300 else told[:297] + '...'}",
            then="the message is the model's own: torch raised it in the model's forward() or in its gradients",
        ) from error


def tensors(batch: Mapping[str, Any], device: str | torch.device) -> dict[str, Tensor]:
    """Turn arrays into tensors on a device; the arrays are not shared, since a module may write into its inputs."""
    return {name: torch.tensor(array, device=device) for name, array in batch.items()}


def example(
    module: nn.Module, inputs: Mapping[str, TensorSpec], count: int, seed: int, device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """Make `count` rows of inputs that a module on the CPU accepts, as tensors on a device.

    Raises:
        StageError: When it fails on the declared inputs.
    """
    return tensors(signatures.example(module, inputs, count, seed, call), device)


def not_finite(module: nn.Module, feed: Mapping[str, Tensor]) -> list[str]:
    """Name the outputs that hold NaN or infinity on these inputs."""
    with torch.inference_mode():
        outputs = call(module, feed)
    return [name for name, value in outputs.items() if not torch.isfinite(value).all()]


def expect_same_inputs(one: Artifact, other: Artifact) -> None:
    """Check that two models read the same inputs, as a teacher and its student must.

    Raises:
        StageError: When they do not.
    """
    names = [list(artifact.read_json("signature.json")["inputs"]) for artifact in (one, other)]
    if names[0] != names[1]:
        raise StageError(
            f"the teacher reads {', '.join(names[0])}, the student {', '.join(names[1])}", then="choose another teacher"
        )


def parameter_count(module: nn.Module) -> int:
    """Count the elements of all parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def renew(module: nn.Module, out: Path) -> None:
    """Put what a module has become in place of what `write` put into a directory."""
    _write_state(module, _built(json.loads((out / "model.json").read_bytes()), out / "code"), out)


def _rebuild(artifact: Artifact) -> nn.Module:
    return _built(artifact.read_json("model.json"), artifact.path / "code")


def _built(body: Mapping[str, Any], code: Path) -> nn.Module:
    factory = usercode.load(body["factory"], code)
    return _build(factory, body["arguments"], body["seed"], body["factory"])


def _build(factory: Any, arguments: Mapping[str, Any], seed: int, where: str) -> nn.Module:
    try:
        with seeded(seed):
            module = factory(**arguments)
    except Exception as error:
        raise StageError(f"the factory failed: {type(error).__name__}: {error}", where=where) from error
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise StageError(
            f"the factory gave {type(module).__name__}, not a torch.nn.Module in Python",
            where=where,
            then="a TorchScript or exported program holds no Python module; give the code that built it",
        )
    for path, child in module.named_modules():
        if type(child).get_extra_state is not nn.Module.get_extra_state:
            raise StageError("keeps state that is no tensor (get_extra_state)", where=f"module '{path}'")
        if isinstance(child, nn.modules.lazy.LazyModuleMixin):
            raise StageError(
                "is lazy: its shapes are unknown until it is called",
                where=f"module '{path}'",
                then="give its sizes in the factory",
            )
    return module


def _write_state(module: nn.Module, fresh: nn.Module, out: Path) -> None:
    _write(out / "edits.json", canonical.encode(edits.difference(fresh, module)))
    tensorfile.write(edits.tensors(module, fresh), out / "weights.safetensors")


def _holds(artifact: Artifact, name: str) -> bool:
    return any(item.name == name for item in artifact.manifest.files)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
