"""Which integers a processor gets, by its instruction sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpack import device
from modelpack.numerics.quantization import hardware
from modelpack.stages.quantize import quantize as quantize_stage
from modelpack.stages.quantize_config import QuantizeConfig

reals = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("flags", "architecture", "where", "name"),
    [
        (["avx2", "avx512f", "avx512_vnni", "amx_int8"], "x86_64", "cpu", "amx"),
        (["avx2", "avx_vnni"], "AMD64", "cpu", "vnni"),
        (["avx2", "avx512f"], "x86_64", "cpu", "avx2"),
        (["asimddp", "i8mm"], "aarch64", "cpu", "neon"),
        ([], "arm64", "cpu", "neon"),
        (["avx2", "avx512_vnni"], "x86_64", "cuda:1", "cuda"),
    ],
)
def test_hardware_is_told_by_its_flags(flags, architecture, where, name):
    assert hardware.detected(flags, architecture, where) == name


def test_this_machine_has_a_profile_and_a_named_one_wins():
    here = hardware.profile("auto", "cpu")
    known = device.machine("cpu")
    assert here.name == hardware.detected(known["processor"]["flags"], known["architecture"], "cpu")
    assert hardware.profile("neon", "cpu").name == "neon"


@given(reals, reals, st.sampled_from(sorted(hardware.PROFILES)), st.booleans())
def test_a_grid_spans_its_range_in_the_targets_integers(one, two, name, wide):
    profile = hardware.PROFILES[name]
    low, high = min(one, two, 0.0), max(one, two, 0.0)
    spot = profile.grid(low, high, wide=wide)
    bounds = np.iinfo(spot.zero_point.dtype)
    assert bounds.bits == (16 if wide else 8)
    assert np.dtype(profile.integer).kind == spot.zero_point.dtype.kind
    assert not profile.centred or spot.zero_point == 0
    scale, zero = float(spot.scale), int(spot.zero_point)
    for value in (low, high, 0.0):
        step = np.clip(np.rint(value / scale) + zero, bounds.min, bounds.max)
        assert abs((step - zero) * scale - value) <= scale * 1.02


def test_settings_about_another_kind_of_hardware_are_refused():
    with pytest.raises(ValueError, match="about x86 processors"):
        QuantizeConfig(data="val", portable=True, target="neon")
    with pytest.raises(ValueError, match="`wide` fits static"):
        QuantizeConfig(method="dynamic", wide=["head"])


def test_a_static_result_depends_on_this_machines_integers_unless_a_target_is_named(monkeypatch):
    known = device.machine("cpu")

    def assumed(flags, **settings):
        found = {**known, "architecture": "x86_64", "processor": {**known["processor"], "flags": flags}}
        monkeypatch.setattr(device, "machine", lambda _device: found)
        config = QuantizeConfig.model_validate({"data": "train", **settings})
        return [(item.name, item.value) for item in quantize_stage.assumes(config, "cpu")]

    assert assumed(["avx2", "avx512_vnni"]) == assumed(["avx2", "amx_int8"]) == [("integers", "U8S8")]
    assert assumed(["avx2"]) == [("integers", "U8S8, summed in 16 bits")]
    assert assumed(["avx2"], target="vnni") == []
    assert assumed(["avx2"], method="dynamic") == []
