"""Export and the torch-free runtime: parity, what the graph holds, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from flowleap.datasets.formats.zarr_store import EpisodeWriter
from flowleap.policy import policy as policy_module
from flowleap.policy.checkpoint import read_policy
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.deploy import export as export_module
from flowleap.policy.deploy.export import export
from flowleap.policy.deploy.onnx_file import refuse_external_data
from flowleap.policy.deploy.parity import action_range, eager_chunk, parity
from flowleap.policy.deploy.runtime import ExportedPolicy, fingerprint
from flowleap.policy.policy import Policy
from flowleap.scripts.cli.run import compose

# Keys with a dot, a non-ASCII letter and a space: none of them may reach the graph.
SPEC = Spec({"agent.pos": ObsKey((2,)), "Würfel points": ObsKey((3, 2))}, 2, 2, 4, 3, 10.0)
BACKBONES = {
    "mlp": {"name": "mlp", "width": 16, "depth": 1},
    "unet1d": {"name": "unet1d", "channels": [8, 16], "time_dim": 8, "groups": 4},
}
CASES = [("mlp", "isd", 1), ("unet1d", "isd", 1), ("mlp", "flow_matching", 3), ("mlp", "regression", 1)]


def observations(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Frames of two very different scales, [count, To, *shape]."""
    rng = np.random.default_rng(seed)
    return {
        "agent.pos": rng.uniform(0, 512, (count, 2, 2)).astype(np.float32),
        "Würfel points": rng.uniform(-1e-3, 1e-3, (count, 2, 3, 2)).astype(np.float32),
    }


def noise(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4, 2), dtype=np.float32)


def make_policy(backbone: str, objective: str) -> Policy:
    """A small policy with a fitted normaliser and larger output weights than at initialisation."""
    torch.manual_seed(0)
    config = {
        "objective": {"name": objective},
        "backbone": BACKBONES[backbone],
        "encoder": {"name": "lowdim", "noise": 0.1},  # must be off in the export
        "head_sigma": 0.1,
    }
    policy = Policy(SPEC, config)
    columns = {key: x.reshape(-1, *x.shape[2:]) for key, x in observations(200).items()}
    policy.normalizer.fit(
        {**columns, "action": np.random.default_rng(2).uniform([0, -1], [512, 1], (400, 2))}
    )
    with torch.no_grad():
        for parameter in policy.net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`workspace(backbone, objective, steps)` -> (eager policy, exported folder), each exported once."""
    root = tmp_path_factory.mktemp("deploy")
    made: dict[tuple[str, str, int], tuple[Policy, Path]] = {}

    def get(backbone: str, objective: str, steps: int) -> tuple[Policy, Path]:
        case = (backbone, objective, steps)
        if case not in made:
            policy = make_policy(backbone, objective)
            name = "-".join(map(str, case))
            info = {"step": 7, "task": {"name": "pusht/state", "kwargs": {}}}
            policy.save(root / name, info=info)
            export(root / name, root / f"{name}-export", steps, observations=observations(50))
            made[case] = (policy, root / f"{name}-export")
        return made[case]

    return get


@pytest.fixture
def folder(workspace: Any, tmp_path: Path) -> Path:
    """A copy of one exported folder, to be damaged."""
    return shutil.copytree(workspace("mlp", "isd", 1)[1], tmp_path / "copy")


def edit(folder: Path, **changes: Any) -> None:
    """Change fields of export.json; `None` deletes a field."""
    manifest = json.loads((folder / "export.json").read_text())
    manifest = {key: value for key, value in {**manifest, **changes}.items() if value is not None}
    (folder / "export.json").write_text(json.dumps(manifest))


def sign(folder: Path, model: Any) -> None:
    """Write a forged model with a digest that fits, as an attacker would."""
    data = model.SerializeToString()
    (folder / "policy.onnx").write_bytes(data)
    edit(folder, sha256=hashlib.sha256(data).hexdigest())


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(FlowleapError) as caught:
        ExportedPolicy.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("case", CASES)
def test_export_repeats_the_eager_policy(workspace: Any, case: tuple[str, str, int]) -> None:
    policy, out = workspace(*case)
    exported = ExportedPolicy.load(out)
    assert (exported.spec, exported.steps, exported.objective) == (SPEC, case[2], case[1])
    assert exported.task == {"name": "pusht/state", "kwargs": {}}
    spread = []
    for batch in (1, 5):
        obs, z = observations(batch, seed=9), noise(batch)
        want, got = eager_chunk(policy, obs, z, case[2]), exported.chunk(obs, z)
        assert got.shape == (batch, 4, 2)
        assert got.dtype == np.float32
        assert (np.abs(want - got) / action_range(policy)).max() < 1e-5
        spread.append(np.ptp(want, axis=0).max())
    assert max(spread) > 1.0  # the actions do depend on what goes in
    assert exported.manifest["checkpoint"]["weights"] == "ema"
    assert sorted(x.name for x in out.iterdir()) == ["export.json", "policy.onnx"]


@pytest.mark.parametrize("case", CASES)
def test_time_embedding_is_a_constant_and_noise_an_input(workspace: Any, case: tuple[str, str, int]) -> None:
    _, out = workspace(*case)
    graph = onnx.load(out / "policy.onnx").graph
    assert not {node.op_type for node in graph.node} & {"Sin", "Cos", "RandomNormalLike"}
    assert not [x.name for x in graph.initializer if ".time.mlp" in x.name]
    assert {x.name for x in graph.input} == {"noise", "obs_0", "obs_1"}
    if case[1] == "regression":  # an input without effect, as in Policy.act
        exported = ExportedPolicy.load(out)
        assert np.array_equal(*(exported.act(observations(2), noise(2, seed)) for seed in (1, 2)))


def test_report(workspace: Any) -> None:
    _, out = workspace("mlp", "isd", 1)
    report = json.loads((out / "export.json").read_text())
    assert report["parity"]["observations"] == "dataset"
    assert {case["batch"] for case in report["parity"]["cases"]} >= {1, 64}
    assert 0 < report["parity"]["max_relative"] < 1e-5
    assert report["parity"]["action_range"] == pytest.approx([512, 2], rel=0.02)
    assert report["latency"]["onnxruntime"]["p50_ms"] <= report["latency"]["onnxruntime"]["p95_ms"]
    assert report["checkpoint"]["step"] == 7
    assert report["versions"].keys() == {"flowleap", "torch", "onnx", "onnxscript", "onnxruntime"}


def test_parity_sees_a_difference(workspace: Any) -> None:
    _, out = workspace("mlp", "isd", 1)
    other = make_policy("mlp", "isd")
    with torch.no_grad():
        other.net.output.bias[0] += 1e-3  # type: ignore[union-attr]
    report = parity(other, ExportedPolicy.load(out), observations(10))
    assert report["max_relative"] == pytest.approx(5e-4, rel=0.05)


def test_too_large_a_difference_leaves_nothing_behind(tmp_path: Path) -> None:
    make_policy("mlp", "isd").save(tmp_path / "checkpoint")
    with pytest.raises(FlowleapError, match="tolerance 0"):
        export(tmp_path / "checkpoint", tmp_path / "out", tolerance=0.0)
    assert [x.name for x in tmp_path.iterdir()] == ["checkpoint"]


def test_script_reads_the_dataset_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowleap.scripts.export import main

    loaded: list[Path] = []
    monkeypatch.setattr(
        policy_module, "read_policy", lambda *args: loaded.append(args[0]) or read_policy(*args)
    )
    with EpisodeWriter(tmp_path / "demos.zarr", SPEC) as writer:
        frames = {key: x[:, -1] for key, x in observations(30).items()}
        writer.add({**frames, "action": np.ones((30, 2), np.float32)})
    info = {"dataset": str(tmp_path / "demos.zarr"), "task": None}
    make_policy("mlp", "isd").save(tmp_path / "run" / "checkpoints" / "step_1", info=info)
    out = main(compose("export", [f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'step_1'}"]))
    report = json.loads((out / "export.json").read_text())
    assert out == tmp_path / "run" / "export_nfe1"
    assert (report["parity"]["observations"], report["parity"]["windows"]) == ("dataset", 30)
    assert report["checkpoint"]["name"] == "step_1"
    assert len(loaded) == 1

    (tmp_path / "demos.zarr").rename(tmp_path / "elsewhere.zarr")
    again = [f"checkpoint={tmp_path / 'run' / 'checkpoints' / 'step_1'}", f"out={out}", "steps=2"]
    assert main(compose("export", again)) == out  # an earlier export is replaced
    report = json.loads((out / "export.json").read_text())
    assert report["parity"]["observations"] == "synthetic"
    assert ExportedPolicy.load(out).steps == report["steps"] == 2
    with pytest.raises(FlowleapError, match="does not exist"):
        main(compose("export", [*again, f"dataset={tmp_path / 'demos.zarr'}"]))


def test_export_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_policy("mlp", "regression").save(tmp_path / "checkpoint")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(FlowleapError, match="not an exported policy"):
        export(tmp_path / "checkpoint", tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").exists()
    with pytest.raises(FlowleapError, match="steps from 1 to 1"):
        export(tmp_path / "checkpoint", tmp_path / "out", steps=4)
    monkeypatch.setattr(export_module, "MAX_BYTES", 1000)
    with pytest.raises(FlowleapError, match="2 GB"):
        export(tmp_path / "checkpoint", tmp_path / "out")


RUNTIME_PROCESS = """
import sys

BLOCKED = {"torch", "zarr", "gymnasium", "hydra", "diffusers", "onnx", "onnxscript", "safetensors"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
import numpy as np
import flowleap.policy.core.registry
from flowleap.policy import ExportedPolicy, FlowleapError, ObsKey, Spec
from flowleap.policy.deploy.runtime import ExportedPolicy

try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("the blocker does not block")
data = dict(np.load(sys.argv[2]))
policy = ExportedPolicy.load(sys.argv[1])
obs = {key: data[f"input{i}"] for i, key in enumerate(policy.spec.observations)}
np.save(sys.argv[3], policy.chunk(obs, data["noise"]))
assert policy.act(obs).shape == (5, 3, 2)
"""


def test_runtime_needs_neither_torch_nor_the_rest(workspace: Any, tmp_path: Path) -> None:
    policy, out = workspace("mlp", "isd", 1)
    obs, z = observations(5, seed=3), noise(5, seed=4)
    np.savez(tmp_path / "in.npz", noise=z, **{f"input{i}": x for i, x in enumerate(obs.values())})
    files = [str(out), str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]
    done = subprocess.run([sys.executable, "-c", RUNTIME_PROCESS, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    error = np.abs(np.load(tmp_path / "out.npy") - eager_chunk(policy, obs, z, 1))
    assert (error / action_range(policy)).max() < 1e-5


def test_own_noise_is_seedable(workspace: Any) -> None:
    _, out = workspace("mlp", "isd", 1)
    first, second, third = (ExportedPolicy.load(out, seed=seed) for seed in (5, 5, 6))
    obs = observations(2)
    chunk = first.act(obs)
    assert np.array_equal(chunk, second.act(obs))
    assert not np.array_equal(chunk, first.act(obs))
    assert not np.array_equal(chunk, third.act(obs))


def test_act_takes_other_number_types_and_layouts(workspace: Any) -> None:
    _, out = workspace("mlp", "isd", 1)
    exported, obs, z = ExportedPolicy.load(out), observations(3), noise(3)
    wide = {key: np.asfortranarray(x.astype(np.float64)) for key, x in obs.items()} | {"unused": np.zeros(1)}
    assert np.array_equal(exported.act(obs, z), exported.act(wide, z.astype(np.float64)))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("agent.pos", None, "observation 'agent.pos' is missing"),
        ("agent.pos", np.zeros((3, 2, 3)), r"expected \[batch, 2, 2\] with batch 3, got \[3, 2, 3\]"),
        ("agent.pos", np.zeros((2, 2)), r"add the batch axis with x\[None\]"),
        ("agent.pos", np.zeros((0, 2, 2)), r"got \[0, 2, 2\]"),
        ("agent.pos", np.float32(1), r"got \[\]"),
        ("Würfel points", np.zeros((2, 2, 3, 2)), "with batch 3"),
        ("Würfel points", np.full((3, 2, 3, 2), "a"), "give numbers as float32"),
        ("Würfel points", [[1], [1, 2]], "give numbers as float32"),
    ],
)
def test_act_refuses(workspace: Any, key: str, value: Any, words: str) -> None:
    obs: dict[str, Any] = observations(3)
    obs[key] = value
    if value is None:
        del obs[key]
    with pytest.raises(FlowleapError, match=words) as caught:
        ExportedPolicy.load(workspace("mlp", "isd", 1)[1]).act(obs)
    assert "\n" not in str(caught.value)


def test_act_refuses_what_is_not_finite_and_warns_of_what_is_far_away(workspace: Any, tmp_path: Path) -> None:
    _, folder = workspace("mlp", "isd", 1)
    exported, obs = ExportedPolicy.load(folder), observations(2)
    key = next(key for key, known in exported.spec.observations.items() if known.kind == "lowdim")
    for value in (np.nan, np.inf):
        bad = {k: x.copy() for k, x in obs.items()}
        bad[key].reshape(-1)[-1] = value
        with pytest.raises(FlowleapError, match=rf"'{key}' is {value} at index \[1, "):
            exported.act(bad)
    degrees = {**obs, key: obs[key] * 57.3 + 57.3}
    with pytest.warns(UserWarning, match=f"'{key}'.* far outside"):
        exported.act(degrees)
    with pytest.raises(FlowleapError, match="far outside"):
        ExportedPolicy.load(folder, unusual="stop").act(degrees)
    with pytest.raises(FlowleapError, match="unusual='halt' is none of warn, stop, ignore"):
        ExportedPolicy.load(folder, unusual="halt")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ranges", [{"nothing": [[1.0], [0.0]]}, {"KEY": [1, 2]}, {"KEY": None}, {"KEY": "ab"}]
)
def test_ranges_that_do_not_fit(folder: Path, ranges: dict[str, Any]) -> None:
    key = next(iter(ExportedPolicy.load(folder).manifest["ranges"]))
    edit(folder, ranges={key if name == "KEY" else name: pair for name, pair in ranges.items()})
    refused(folder, "ranges", key if "KEY" in ranges else "nothing")


def test_a_large_offset_does_not_block_the_export(tmp_path: Path) -> None:
    """Actions of 2000 +- 0.5: float32 has steps of 1.2e-4 there, a tenth of a thousandth of the range."""
    spec = Spec({"state": ObsKey((2,))}, action_dim=1, horizon=4, n_action_steps=2)
    policy = Policy(spec, {"objective": "isd", "backbone": {"name": "mlp", "width": 16}, "encoder": "lowdim"})
    rng = np.random.default_rng(0)
    state = rng.normal(size=(300, 2)).astype(np.float32)
    policy.normalizer.fit(
        {"state": state, "action": 2000 + rng.uniform(-0.5, 0.5, (300, 1)).astype(np.float32)}
    )
    report = export(policy, tmp_path / "out", tolerance=1e-6)
    assert report["parity"]["max_relative"] < 1e-6


def test_ddpm_exports_with_all_its_noise(tmp_path: Path) -> None:
    """A hundred ancestral steps as one loop of the graph; the runtime draws the noise that the eager policy draws."""
    spec = Spec({"state": ObsKey((2,))}, action_dim=2, horizon=4, n_action_steps=2)
    torch.manual_seed(0)
    policy = Policy(
        spec, {"objective": "ddpm", "backbone": {"name": "mlp", "width": 16}, "encoder": "lowdim"}
    )
    rng = np.random.default_rng(0)
    policy.normalizer.fit({key: rng.normal(size=(300, 2)).astype(np.float32) for key in ("state", "action")})
    report = export(policy, tmp_path / "ddpm")
    assert (report["steps"], report["draws"]) == (100, 100)
    assert report["parity"]["max_relative"] < 1e-5
    z = rng.standard_normal((3, 4, 2), dtype=np.float32)
    obs = rng.normal(size=(3, 1, 2)).astype(np.float32)
    expected = policy.act({"state": torch.from_numpy(obs)}, torch.from_numpy(z))
    np.testing.assert_allclose(
        ExportedPolicy.load(tmp_path / "ddpm").act({"state": obs}, z), expected, atol=1e-5
    )
    edit(tmp_path / "ddpm", draws=1)
    refused(tmp_path / "ddpm", "inputs")


def test_act_refuses_noise_of_another_shape(workspace: Any) -> None:
    exported = ExportedPolicy.load(workspace("mlp", "isd", 1)[1])
    for z in (noise(2), noise(3)[:, :3], noise(3)[0]):
        with pytest.raises(FlowleapError, match=r"noise: expected \[3, 4, 2\]"):
            exported.act(observations(3), z)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "flowleap-policy"}, ["not an exported policy"]),
        ({"format_version": 2}, ["format version 2", "reads 1"]),
        ({"sha256": None}, ["field 'sha256' is missing"]),
        ({"spec": None}, ["field 'spec' is missing"]),
        ({"spec": []}, ["field 'spec' must be dict"]),
        ({"steps": "1"}, ["field 'steps' must be int"]),
        ({"steps": True}, ["field 'steps' must be int"]),
        ({"steps": 4}, ["steps", "are not the ones it was exported with"]),
        ({"objective": "regression"}, ["are not the ones it was exported with"]),
        ({"inputs": {"agent.pos": "obs_0"}}, ["field 'inputs' names ['agent.pos']"]),
        ({"inputs": {"agent.pos": 1, "Würfel points": []}}, ["are not the ones"]),
    ],
)
def test_tampered_manifest(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    edit(folder, **changes)
    refused(folder, "export.json", *words)


@pytest.mark.parametrize(
    ("field", "value"),
    [("control_hz", 50.0), ("action_dim", 3), ("action_convention", "delta"), ("horizon", 8)],
)
def test_changed_spec(folder: Path, field: str, value: Any) -> None:
    spec = json.loads((folder / "export.json").read_text())["spec"]
    edit(folder, spec={**spec, field: value})
    refused(folder, "export.json does not describe policy.onnx")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000, "\udcff"])
def test_manifest_that_is_no_object(folder: Path, text: str) -> None:
    (folder / "export.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(folder, "export.json")


def test_damaged_model(folder: Path) -> None:
    file = folder / "policy.onnx"
    data = file.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for damaged in (bytes(flipped), data[:-100], b""):
        file.write_bytes(damaged)
        refused(folder, "policy.onnx is damaged")
    file.unlink()
    refused(folder, "policy.onnx", "copy the exported folder again")
    (folder / "export.json").unlink()
    refused(folder, "is not an exported policy")


def hide(model: Any, place: str, path: str) -> None:
    """Add a tensor whose data are in another file, in one of the places where ONNX allows tensors."""
    tensor = onnx.helper.make_tensor("hidden", onnx.TensorProto.FLOAT, [1], b"\0" * 4, raw=True)
    onnx.external_data_helper.set_external_data(tensor, path)
    if place == "data location alone":
        tensor.ClearField("external_data")
    else:
        tensor.ClearField("raw_data")
    constant = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    branch = onnx.helper.make_graph([], "branch", [], [], [tensor])
    if place in ("initializer", "data location alone"):
        model.graph.initializer.append(tensor)
    elif place == "sparse initializer":
        model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor))
    elif place == "node attribute":
        model.graph.node.append(constant)
    elif place == "list of tensors":
        constant.attribute[0].CopyFrom(onnx.helper.make_attribute("list", [tensor]))
        model.graph.node.append(constant)
    elif place == "subgraph":
        inner = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        outer = onnx.helper.make_graph([inner], "outer", [], [])
        model.graph.node.append(
            onnx.helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=outer)
        )
    else:
        model.functions.add().node.append(constant)


@pytest.mark.parametrize(
    "place",
    [
        "initializer",
        "data location alone",
        "sparse initializer",
        "node attribute",
        "list of tensors",
        "subgraph",
        "function",
    ],
)
def test_model_with_data_in_another_file(folder: Path, place: str) -> None:
    """The runtime refuses what onnxruntime might follow to wherever the path leads."""
    model = onnx.load(folder / "policy.onnx")
    (folder / "secret.bin").write_bytes(b"\0" * 4)
    hide(model, place, str(folder / "secret.bin"))
    sign(folder, model)
    refused(folder, "policy.onnx", "data in other files")


def test_bytes_that_are_no_model(folder: Path) -> None:
    file = folder / "policy.onnx"
    data = file.read_bytes()
    refuse_external_data(data, file)
    nested = b""
    for _ in range(60):  # attribute 5 of a node, graph 6 of an attribute, node 1 of a graph
        for tag in (0x32, 0x2A, 0x0A):
            size, length = len(nested), []
            while size > 0x7F:
                length.append(size & 0x7F | 0x80)
                size >>= 7
            nested = bytes([tag, *length, size]) + nested
    broken = {
        "cut off": data[: len(data) // 2],
        "deep": b"\x3a" + bytes([len(nested) & 0x7F | 0x80, len(nested) >> 7]) + nested,
        "invalid number": b"\x3a" + b"\xff" * 12,
        "invalid field": b"\xba\x80\x80\x80\x80\x00" + b"\0",  # a tag that is longer than it need be
    }
    for words, model in broken.items():
        with pytest.raises(FlowleapError, match=f"policy.onnx is no ONNX model .*{words}"):
            refuse_external_data(model, file)
    rng = np.random.default_rng(0)
    for _ in range(300):  # whatever the bytes are: accepted, or refused in one line
        damaged = bytearray(data[: rng.integers(1, len(data))])
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        with suppress(FlowleapError):
            refuse_external_data(bytes(damaged), file)


def test_a_parameter_may_be_called_location(tmp_path: Path) -> None:
    """ONNX calls the file of a tensor outside the model `location`; so may a network call its weights."""
    policy = make_policy("mlp", "isd")
    policy.net = Shifted(policy.net)
    export(policy, tmp_path / "out", observations=observations(20))
    assert b"location" in (tmp_path / "out" / "policy.onnx").read_bytes()
    exported, obs, z = ExportedPolicy.load(tmp_path / "out"), observations(3), noise(3)
    error = np.abs(exported.chunk(obs, z) - eager_chunk(policy, obs, z, 1))
    assert (error / action_range(policy)).max() < 1e-5
    assert exported.manifest["checkpoint"]["name"] is None
    assert policy.training  # as it was


class Shifted(nn.Module):
    """A network and a shift of its output."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.location = net, nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.net(*inputs) + self.location


def test_forged_model(folder: Path) -> None:
    manifest = json.loads((folder / "export.json").read_text())
    original = onnx.load(folder / "policy.onnx")
    model = onnx.ModelProto()
    model.CopyFrom(original)
    model.graph.node[0].domain = "evil"
    sign(folder, model)
    refused(folder, "onnxruntime cannot load it")
    model.CopyFrom(original)
    sign(folder, model)
    edit(folder, actions=3)
    refused(folder, "its outputs are")
    spec = {**manifest["spec"], "n_obs_steps": 1}
    model.metadata_props[0].value = fingerprint({**manifest, "spec": spec})
    sign(folder, model)
    edit(folder, spec=spec)
    refused(folder, "its inputs are")
    (folder / "policy.onnx").write_bytes(b"not a model")
    edit(folder, sha256=hashlib.sha256(b"not a model").hexdigest())
    refused(folder, "policy.onnx is no ONNX model")


def test_threads_are_checked(folder: Path) -> None:
    with pytest.raises(FlowleapError, match="threads"):
        ExportedPolicy.load(folder, threads=0)
