"""Images for graphics cards: their wheels, layers and settings; and a server that refuses to run elsewhere in silence.

No test here runs on a card: what is tested is what an image for one consists of.
"""

import zipfile

import onnxruntime
import pytest
from pydantic import ValidationError

from image_support import onnx_artifact, rootfs, wheel
from modelpack.container import dockerfile, install, plan, wheels
from modelpack.container.base import open_base
from modelpack.container.reference import BaseRef
from modelpack.container.tree import SUPPORTED
from modelpack.container.wheels import Target, Wheel
from modelpack.errors import StageError
from modelpack.server.engine import Engine
from modelpack.server.faults import StartError
from modelpack.server.settings import Settings
from modelpack.server.signature import read
from modelpack.stages.build import BuildConfig

__all__ = ["rootfs"]
LIBRARY = b"\x7fELF\x02\x01" + bytes(50) + b"\x38\0\1\0" + bytes(100) + b"behind what is loaded"
"""It has no segments that make sense, so that trimming would cut it."""


@pytest.mark.parametrize("minor", SUPPORTED)
def test_for_cuda_one_onnxruntime_stands_in_for_the_other(minor):
    plain = {item.name for item in wheels.select(Target(minor, "amd64"))}
    cuda = {item.name: item.file for item in wheels.select(Target(minor, "amd64"), {"cuda"})}
    added = {name for name, kinds in wheels.OPTIONAL.items() if "cuda" in kinds}
    assert set(cuda) == (plain - {"onnxruntime"}) | added
    assert f"-cp3{minor}-" in cuda["onnxruntime-gpu"]
    assert wheels.requirements()["onnxruntime-gpu"] == wheels.requirements()["onnxruntime"]
    with pytest.raises(StageError, match=r"has no wheel for Python 3\.\d+ on arm64"):
        wheels.select(Target(minor, "arm64"), {"cuda"})


@pytest.mark.parametrize("platform", ["linux/arm64", "linux/amd64,linux/arm64"])
def test_there_is_no_cuda_for_arm(platform):
    with pytest.raises(ValidationError, match="CUDA on linux/amd64 alone"):
        BuildConfig.model_validate({"device": "cuda", "platform": platform})


def test_an_order_for_cuda_asks_for_its_wheels():
    config = BuildConfig.model_validate(
        {"device": "cuda", "platform": "linux/amd64", "grpc": "true", "opentelemetry": "true"}
    )
    assert config.order("x").kinds == {"cuda", "grpc", "opentelemetry"}
    assert BuildConfig.model_validate({}).order("x").kinds == frozenset()


@pytest.fixture
def contents(tmp_path, rootfs):
    """What an image for a graphics card has above its base; the wheels are small ones."""
    brought = {
        "nvidia_cublas": {
            "nvidia/cu13/lib/libcublas.so.13": LIBRARY,
            "nvidia/cu13/lib/libnvblas.so.13": LIBRARY,
            "nvidia/cu13/include/cublas.h": b"",
            "nvidia/cu13/include/cuda_fp8.hpp": b"",
        },
        "onnxruntime_gpu": {
            "onnxruntime/capi/libonnxruntime_providers_cuda.so": LIBRARY,
            "onnxruntime/capi/libonnxruntime_providers_tensorrt.so": LIBRARY,
            "onnxruntime/capi/libonnxruntime_providers_shared.so": LIBRARY,
        },
    }
    files = {}
    for name, content in brought.items():
        file, digest = wheel(tmp_path, name, content)
        files[Wheel(name.replace("_", "-"), "1.0", file, digest)] = tmp_path / file
    base = open_base(BaseRef.parse(f"rootfs:{rootfs}"), "linux/amd64", cache=tmp_path, scratch=tmp_path)
    title = plan.Title("small", "1", "id")
    return plan.contents(onnx_artifact(tmp_path), b"{}", title, base=base, wheels=files, program=None, device="cuda")


def test_cudas_libraries_are_a_layer_of_their_own_below_and_stay_whole(contents):
    assert [layer.name for layer in contents.layers] == ["cuda", "wheels", "server", "model"]
    cuda, site = ({entry.name.removeprefix("opt/modelpack/site-packages/"): entry for entry in layer.entries}
                  for layer in contents.layers[:2])  # fmt: skip
    assert [name for name in cuda if name.startswith("nvidia/")] == ["nvidia/cu13/lib/libcublas.so.13"]
    assert b"".join(cuda["nvidia/cu13/lib/libcublas.so.13"].chunks()) == LIBRARY
    kept = [name for name in site if name.endswith(".so")]
    assert kept == [f"onnxruntime/capi/libonnxruntime_providers_{name}.so" for name in ("cuda", "shared")]
    assert b"".join(site[kept[0]].chunks()) == LIBRARY


def test_the_container_runtime_is_asked_for_cards_and_the_server_for_cuda(contents):
    assert contents.env["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert contents.env["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert contents.env.items() >= plan.ENV.items()
    assert Settings.read(contents.env).device == "cuda"
    assert Settings.read(plan.ENV).device == "cpu"
    with pytest.raises(StartError, match="MODELPACK_DEVICE='gpu' is none of cpu, cuda"):
        Settings.read({"MODELPACK_DEVICE": "gpu"})


def test_the_dockerfile_adds_the_layer_before_the_others(contents):
    text = dockerfile.render(dockerfile.template().read_text("utf-8"), contents, "base:1", "t")
    added = [line for line in text.splitlines() if line.startswith("ADD")]
    assert added == [f"ADD {name}.tar /" for name in ("cuda", "wheels", "server", "model")]


def test_a_server_without_cuda_refuses_and_one_that_would_fall_back_too(tmp_path, monkeypatch):
    model = onnx_artifact(tmp_path)
    given = model.file("model.onnx"), read(model.file("signature.json"))
    with pytest.raises(StartError, match="this onnxruntime knows no cuda"):
        Engine(*given, device="cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.warns(UserWarning, match="not in available provider"), pytest.raises(StartError, match="--gpus all"):
        Engine(*given, device="cuda")
    monkeypatch.undo()
    assert Engine(*given).session.get_providers() == ["CPUExecutionProvider"]


def test_the_locked_files_hold_what_onnxruntime_looks_for():
    """Its names of CUDA's libraries, found in the wheels that are in the cache; skips where none is."""
    folder = wheels.cache_directory() / "wheels"
    files = [folder / item.sha256[:16] / item.file for item in wheels.select(Target(11, "amd64"), {"cuda"})]
    cuda = [path for path in files if path.name.startswith("nvidia_")]
    if not all(path.is_file() for path in cuda):
        pytest.skip("CUDA's wheels are not in the cache (modelpack build with device: cuda brings them)")
    names = [name for path in cuda for name in zipfile.ZipFile(path).namelist() if install.kept(name)]
    for wanted in ("cublasLt", "cublas", "nvrtc", "curand", "cufft", "cudart", "cudnn", "nvJitLink"):
        assert [name for name in names if f"/lib/lib{wanted}.so." in name]
