"""The formats of an export: the same actions from each, and what is refused before anything is read."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.deploy import backends, parity
from flowleap.policy.deploy import export as export_module
from flowleap.policy.deploy.export import FORMATS, export, rewrite
from flowleap.policy.deploy.gemm import GemmUNet, Rows, RowsTransposed
from flowleap.policy.deploy.joined import JoinedMLP, JoinedTransformer
from flowleap.policy.deploy.parity import action_range, eager_chunk
from flowleap.policy.deploy.runtime import ExportedPolicy
from flowleap.policy.policy import Policy

real_trace = export_module.trace
SPEC = Spec({"joints": ObsKey((5,)), "gripper": ObsKey(())}, 2, 2, 8, 4, 10.0)
CAMERA = Spec({"top": ObsKey((16, 16, 3), "uint8", "rgb"), "joints": ObsKey((5,))}, 2, 2, 8, 4)
BACKBONES: dict[str, dict[str, Any]] = {
    "mlp": {"name": "mlp", "width": 64, "depth": 2},
    "transformer": {"name": "transformer", "width": 64, "depth": 1, "heads": 2},
    "unet1d": {"name": "unet1d", "channels": [16, 32], "time_dim": 16},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "lowdim": {"name": "lowdim", "noise": 0.1},
    "cnn": {"name": "cnn", "channels": [8, 8], "features": 64},
}
# The largest error over the range of the actions; of reduced precision that of a small network, which averages little.
LIMITS = {"float32": 1e-5, "int8": 0.1, "bfloat16": 0.1}
needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="openvino is not installed"
)
EACH = [pytest.param(name, marks=needs_openvino if "openvino" in name else ()) for name in FORMATS]


def make_policy(backbone: str, encoder: str = "lowdim", objective: str = "isd") -> Policy:
    """A small policy in eval mode whose blocks all matter."""
    torch.manual_seed(0)
    spec = SPEC if encoder == "lowdim" else CAMERA
    parts = {"objective": objective, "backbone": BACKBONES[backbone], "encoder": ENCODERS[encoder]}
    policy = Policy(spec, parts).eval()
    rng = np.random.default_rng(0)
    lowdim = {key: obs.shape for key, obs in spec.observations.items() if obs.kind == "lowdim"}
    columns = {key: rng.uniform(-3, 5, (100, *shape)).astype(np.float32) for key, shape in lowdim.items()}
    policy.normalizer.fit({**columns, "action": rng.uniform([0, -1], [512, 1], (100, 2))})
    with torch.no_grad():
        for parameter in policy.net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


def inputs(policy: Policy, batch: int, seed: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    obs = parity.synthetic_observations(policy, batch, seed)
    shape = (batch, policy.spec.horizon, policy.spec.action_dim)
    return obs, np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


TRACED: dict[str, bytes] = {}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace each network once for all formats."""

    def trace(policy: Policy, manifest: Any) -> bytes:
        contract = {**policy.config, "steps": manifest["steps"], "spec": manifest["spec"]}
        key = json.dumps(contract, sort_keys=True)
        if key not in TRACED:
            TRACED[key] = real_trace(policy, manifest)
        return TRACED[key]

    monkeypatch.setattr(export_module, "trace", trace)
    monkeypatch.setattr(parity, "BATCH_SIZES", (1, 2))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`exported(format, backbone)` -> (policy, folder), each made once."""
    root, made = tmp_path_factory.mktemp("formats"), {}

    def get(form: str, backbone: str = "mlp") -> tuple[Policy, Path]:
        if (form, backbone) not in made:
            policy, out = make_policy(backbone), root / f"{form}-{backbone}"
            export(policy, out, format=form, ddpm=False)
            made[form, backbone] = policy, out
        return made[form, backbone]

    return get


@pytest.mark.parametrize("backbone", BACKBONES)
def test_forms_for_one_chunk_are_the_same_function(backbone: str) -> None:
    policy = make_policy(backbone)
    rng = torch.Generator().manual_seed(0)
    x, cond = torch.randn(3, 8, 2, generator=rng), torch.randn(3, policy.encoder.dim, generator=rng)
    t, s = torch.full((3,), 0.7), torch.full((3,), 0.2)
    holder = torch.nn.ModuleDict({"net": policy.net})
    expected = policy.net(x, t, s, cond)
    rewrite(holder, 8)
    assert type(holder["net"]) in (GemmUNet, JoinedMLP, JoinedTransformer)
    torch.testing.assert_close(holder["net"](x, t, s, cond), expected, rtol=1e-4, atol=1e-5)
    assert not [m for m in holder.modules() if isinstance(m, torch.nn.Conv1d)]


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(1, 1, 0), (3, 2, 1), (5, 1, 2), (7, 1, 3), (3, 1, 0)]
)
def test_convolutions_as_products(kernel: int, stride: int, padding: int) -> None:
    conv = torch.nn.Conv1d(3, 4, kernel, stride, padding)
    x = torch.randn(2, 8, 3)
    expected = conv(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(Rows(conv, 8)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 1)])
def test_transposed_convolutions_as_products(kernel: int, stride: int, padding: int) -> None:
    conv = torch.nn.ConvTranspose1d(3, 4, kernel, stride, padding)
    x = torch.randn(2, 8, 3)
    expected = conv(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(RowsTransposed(conv, 8)(x), expected, rtol=1e-4, atol=1e-5)


def test_a_subclass_keeps_its_own_form() -> None:
    class Other(type(make_policy("unet1d").net)):  # type: ignore[misc]
        pass

    policy = make_policy("unet1d")
    policy.net.__class__ = Other
    rewrite(policy, 8)
    assert type(policy.net) is Other


@pytest.mark.parametrize("form", EACH)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_format_repeats_the_policy(exported: Any, form: str, backbone: str) -> None:
    policy, out = exported(form, backbone)
    robot = ExportedPolicy.load(out)
    backend, precision = FORMATS[form]
    assert (robot.manifest["backend"], robot.manifest["precision"]) == (backend, precision)
    report = robot.manifest["parity"]
    assert len(report["rms_per_dimension"]) == len(report["max_abs_per_dimension"]) == 2
    assert report["max_abs"] == max(report["max_abs_per_dimension"])
    # One alone and several, in any order: OpenVINO compiles these apart.
    for batch in (3, 1, 2, 1):
        obs, z = inputs(policy, batch)
        error = np.abs(robot.chunk(obs, z) - eager_chunk(policy, obs, z, 1)) / action_range(policy)
        assert error.max() < LIMITS[precision]
    first = robot.chunk(*inputs(policy, 1))
    kept = first.copy()
    robot.chunk(*inputs(policy, 1, seed=4))
    assert np.array_equal(first, kept)


def test_int8_weights_are_int8(exported: Any) -> None:
    sizes = []
    for form in ("onnx", "onnx-int8"):
        _, out = exported(form, "mlp")
        graph = onnx.load(out / "policy.onnx").graph
        kinds = {x.data_type for x in graph.initializer if np.prod(x.dims) >= 2**12}
        assert kinds == {onnx.TensorProto.INT8 if form == "onnx-int8" else onnx.TensorProto.FLOAT}
        sizes.append((out / "policy.onnx").stat().st_size)
        # What older processors add up in 16 bits must fit.
        for x in graph.initializer:
            if x.data_type == onnx.TensorProto.INT8 and x.dims:
                assert np.abs(onnx.numpy_helper.to_array(x).astype(int)).max() <= 64
    assert sizes[1] < 0.5 * sizes[0]


def test_latency_beside_eager_and_ddpm(tmp_path: Path) -> None:
    report = export(make_policy("mlp"), tmp_path / "out")["latency"]
    assert {"onnxruntime", "eager", "ddpm100_eager"} < set(report)
    assert report["ddpm100_eager"]["p50_ms"] > 20 * report["eager"]["p50_ms"]
    ratio = report["ddpm100_eager"]["p50_ms"] / report["onnxruntime"]["p50_ms"]
    assert report["speedup_over_ddpm100"] == ratio


def test_calls_are_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "_LATENCY_CALLS", 5)
    order: list[str] = []
    report = parity.time_in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 10)
    assert report["a"]["calls"] == report["b"]["calls"] == 5
    assert "".join(order).count("ab") >= 5


@pytest.mark.parametrize(
    ("objective", "steps"), [("flow_matching", 3), ("ddpm", 4), ("ddpm", 100), ("mip", 2)]
)
@pytest.mark.parametrize("form", EACH)
def test_more_steps(tmp_path: Path, form: str, objective: str, steps: int) -> None:
    policy = make_policy("mlp", objective=objective)
    if (form, steps) == ("openvino-bf16", 100):
        pytest.skip("a hundred passes take long to compile, and are those of openvino")
    report = export(policy, tmp_path / "out", steps, format=form, tolerance=np.inf, ddpm=False, batches=(1,))
    if FORMATS[form][1] == "float32":
        assert report["parity"]["max_relative"] < 1e-4
    # Untrained networks let errors grow over a hundred steps.
    assert report["parity"]["rms_relative"] < 0.5


@pytest.mark.parametrize("form", EACH)
def test_images(tmp_path: Path, form: str) -> None:
    """The other encoders, and all combinations, are part of `flowleap speed what=combinations`."""
    policy = make_policy("mlp", "cnn")
    report = export(policy, tmp_path / "out", format=form, tolerance=np.inf, ddpm=False)
    limit = {"float32": 1e-4}.get(FORMATS[form][1], 0.1)
    assert report["parity"]["rms_relative"] < limit


def test_too_much_rounding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowleapError, match="root mean square"):
        export(make_policy("mlp"), tmp_path / "out", format="onnx-int8", tolerance=1e-6, ddpm=False)
    assert not (tmp_path / "out").exists()


def test_provenance(tmp_path: Path) -> None:
    make_policy("mlp").save(tmp_path / "run", info={"data": {"action": "digest"}})
    manifest = export(tmp_path / "run", tmp_path / "out", ddpm=False)
    weights = hashlib.sha256((tmp_path / "run" / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["checkpoint"]["sha256"] == weights
    assert manifest["checkpoint"]["data"] == {"action": "digest"}
    assert manifest["sha256"] == hashlib.sha256((tmp_path / "out" / "policy.onnx").read_bytes()).hexdigest()


def edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize("form", EACH)
def test_a_tampered_model_is_refused_before_it_is_parsed(
    exported: Any, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(exported(form)[1], tmp_path / "copy")
    data = bytearray((folder / "policy.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "policy.onnx").write_bytes(data)

    def parsed(*_: Any) -> Any:
        raise AssertionError("the model was handed on")

    backend = FORMATS[form][0]
    monkeypatch.setitem(backends.BACKENDS, backend, parsed)
    with pytest.raises(FlowleapError, match="sha256"):
        ExportedPolicy.load(folder)


@pytest.mark.parametrize("form", EACH)
def test_a_model_with_data_elsewhere_is_refused(exported: Any, tmp_path: Path, form: str) -> None:
    folder = shutil.copytree(exported(form)[1], tmp_path / "copy")
    model = onnx.load(folder / "policy.onnx")
    tensor = onnx.helper.make_tensor("x", onnx.TensorProto.FLOAT, [1], b"\0" * 4, raw=True)
    onnx.external_data_helper.set_external_data(tensor, "../secret")
    model.graph.initializer.append(tensor)
    data = model.SerializeToString()
    (folder / "policy.onnx").write_bytes(data)
    edit(folder, sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(FlowleapError, match="other files"):
        ExportedPolicy.load(folder)


@pytest.mark.parametrize("form", EACH)
def test_another_contract_is_refused(exported: Any, tmp_path: Path, form: str) -> None:
    folder = shutil.copytree(exported(form)[1], tmp_path / "copy")
    edit(folder, objective="regression")
    with pytest.raises(FlowleapError, match="are not the ones it was exported with"):
        ExportedPolicy.load(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backend": "openvin"}, "field 'backend'.* is 'openvin', none of .*did you mean 'openvino'"),
        ({"backend": None}, "field 'backend'"),
        ({"backend": ["os"]}, "field 'backend'"),
        ({"backend": "os"}, "field 'backend'"),
        ({"precision": "int4"}, "field 'precision'.*'int4'"),
    ],
)
def test_unknown_formats_are_named(
    exported: Any, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = shutil.copytree(exported("onnx")[1], tmp_path / "copy")
    edit(folder, **changes)
    with pytest.raises(FlowleapError, match=words):
        ExportedPolicy.load(folder)
    with pytest.raises(FlowleapError, match=r"format=onnx8 is none of .*did you mean 'onnx'"):
        export(make_policy("mlp"), tmp_path / "out", format="onnx8")


WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.deploy.runtime import ExportedPolicy

try:
    ExportedPolicy.load(sys.argv[1])
    print("opened", "torch" in sys.modules, "onnxruntime" in sys.modules)
except FlowleapError as error:
    print(error)
"""


def opened_without(folder: Path, *modules: str) -> str:
    command = [sys.executable, "-c", WITHOUT, str(folder), *modules]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@needs_openvino
def test_openvino_needs_neither_torch_nor_onnxruntime(exported: Any) -> None:
    folder = exported("openvino")[1]
    assert opened_without(folder, "torch", "onnxruntime", "onnx") == "opened False False"
    assert "openvino is not installed: pip install 'flowleap[openvino]'" in opened_without(folder, "openvino")


def test_onnxruntime_that_is_missing_is_named(exported: Any) -> None:
    text = opened_without(exported("onnx-int8")[1], "onnxruntime")
    assert "onnxruntime is not installed: pip install 'flowleap[deploy]'" in text


ROOT = Path(__file__).resolve().parents[2]
INSTALLED = Path(
    os.environ.get("ONNXRUNTIME_ROOT", "/usr")
)  # with include and lib, as in onnxruntime's archives


@pytest.mark.parametrize("form", ["onnx", "onnx-int8"])
def test_cpp_example_acts_as_python_does(exported: Any, tmp_path: Path, form: str) -> None:
    header = next(INSTALLED.glob("include/**/onnxruntime_cxx_api.h"), None)
    library = next(INSTALLED.glob("lib/**/libonnxruntime.so"), None)
    if not (header and library and shutil.which("g++")):
        pytest.skip("no C++ onnxruntime: set ONNXRUNTIME_ROOT to a folder with its include and lib")
    program = tmp_path / "act"
    flags = ["-std=c++17", "-I", str(header.parent), "-L", str(library.parent), "-lonnxruntime"]
    source = str(ROOT / "examples" / "cpp" / "act.cpp")
    subprocess.run(["g++", source, *flags, "-o", str(program)], check=True)
    policy, folder = exported(form)
    obs, z = inputs(policy, 1)
    graph = onnx.load(folder / "policy.onnx").graph
    named = {name: obs[key] for key, name in ExportedPolicy.load(folder).manifest["inputs"].items()}
    data = b"".join({"noise": z, **named}[x.name].tobytes() for x in graph.input)
    (tmp_path / "inputs").write_bytes(data)
    command = [str(program), str(folder / "policy.onnx"), str(tmp_path / "inputs")]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    actions = np.array([line.split() for line in done.stdout.splitlines()], np.float32)
    expected = ExportedPolicy.load(folder).chunk(obs, z)[0]
    np.testing.assert_allclose(actions, expected, rtol=1e-4, atol=1e-3)
