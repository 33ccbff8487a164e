"""Policies on the Hugging Face Hub, on a stand-in for its server: pushed, fetched, pinned, refused; and their cards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hub_server import TOKEN, HubServer, Repository, serving, use

from flowleap.datasets.windows import Windows
from flowleap.envs.registry import make_task
from flowleap.lerobot import folder as lerobot_folder
from flowleap.policy import checkpoint
from flowleap.policy.core import hub
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.hub import Address
from flowleap.policy.deploy import runtime
from flowleap.policy.deploy.card import card
from flowleap.policy.deploy.hub import destination, prepare, push
from flowleap.policy.deploy.runtime import ExportedPolicy
from flowleap.policy.policy import Policy
from flowleap.policy.training.config import TrainerConfig
from flowleap.policy.training.trainer import Trainer
from flowleap.scripts.cli import main as cli

TASK = "probe/slalom"


def train(run_dir: Path, steps: int, seed: int = 0) -> Policy:
    """A small policy for the slalom, hardly trained."""
    spec = make_task(TASK).spec.with_window(2, 8, 4)
    rng = np.random.default_rng(seed)
    columns = {
        key: rng.normal(size=(60, *obs.shape)).astype(np.float32) for key, obs in spec.observations.items()
    }
    columns["action"] = rng.normal(size=(60, spec.action_dim)).astype(np.float32)
    torch.manual_seed(seed)
    parts = {"objective": {"name": "isd"}, "backbone": {"name": "mlp", "width": 16, "depth": 1}}
    policy = Policy(spec, {**parts, "encoder": {"name": "lowdim"}})
    policy.normalizer.fit(columns)
    info = {"task": {"name": TASK, "kwargs": {}}, "dataset": "/home/alice/secret/slalom.zarr", "episodes": 2}
    config = TrainerConfig.from_mapping({"steps": steps, "batch_size": 8, "device": "cpu", "progress": False})
    Trainer(policy, Windows(columns, np.array([20, 60]), spec), config, run_dir, info=info).fit()
    return Policy.load(run_dir)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained, exported and evaluated as users do it."""
    run_dir = tmp_path_factory.mktemp("hub") / "slalom"
    train(run_dir, 2)
    where = [f"checkpoint={run_dir}", "n_envs=1", "videos=0"]
    assert cli.main(["eval", *where, "episodes=2"]) == cli.main(["export", f"checkpoint={run_dir}"]) == 0
    return run_dir


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    running = HubServer()
    with serving(running, monkeypatch):
        use(running, tmp_path / "cache", monkeypatch)
        monkeypatch.chdir(tmp_path)
        yield running


def observations(policy: Any, count: int = 5) -> dict[str, np.ndarray]:
    rng, spec = np.random.default_rng(3), policy.spec
    return {
        key: rng.normal(size=(count, spec.n_obs_steps, *obs.shape)).astype(np.float32)
        for key, obs in spec.observations.items()
    }


def actions(policy: Policy) -> np.ndarray:
    obs = {key: torch.from_numpy(x) for key, x in observations(policy).items()}
    noise = np.random.default_rng(4).standard_normal((5, policy.spec.horizon, policy.spec.action_dim))
    return policy.act(obs, torch.from_numpy(noise.astype(np.float32)), 1).numpy()


def exported_actions(policy: ExportedPolicy) -> np.ndarray:
    noise = np.random.default_rng(4).standard_normal((5, policy.spec.horizon, policy.spec.action_dim))
    return policy.act(observations(policy), noise.astype(np.float32))


def test_the_files_are_those_that_are_written() -> None:
    assert hub.CHECKPOINT_FILES[:2] == (checkpoint.MANIFEST, checkpoint.WEIGHTS)
    assert hub.EXPORT_FILES[:2] == (runtime.MANIFEST, runtime.MODEL)
    assert hub.LEROBOT_FILES == (
        lerobot_folder.CONFIG,
        lerobot_folder.PREPROCESSOR,
        lerobot_folder.POSTPROCESSOR,
    )


# There and back


def test_a_run_comes_back_bit_for_bit(
    server: HubServer, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["push", f"checkpoint={run}", "to=me/slalom", "license=mit"]) == 0
    out = capsys.readouterr().out
    files = server.repositories["me/slalom"].files()
    assert sorted(files) == [".gitattributes", "README.md", "model.safetensors", "policy.json"]
    assert files["model.safetensors"] == (run / "checkpoints" / "last" / "model.safetensors").read_bytes()
    assert server.repositories["me/slalom"].messages[-1] == "Checkpoint, 2 steps"
    assert b"alice" not in b"".join(files.values())
    pinned = re.search(r"flowleap eval checkpoint=(hf://me/slalom@\w{40})", out)
    assert pinned, out
    local, first = Policy.load(run), actions(Policy.load("hf://me/slalom"))
    assert np.array_equal(first, actions(local))
    assert server.fetched() == ["model.safetensors", "policy.json"]

    other = train(tmp_path / "other", 3, seed=1)
    pushed = push(tmp_path / "other", "me/slalom")
    assert not np.array_equal(first, actions(other))
    assert np.array_equal(actions(Policy.load("hf://me/slalom")), actions(other))
    assert np.array_equal(actions(Policy.load(Path(f"{pinned[1]}"))), first), "a pinned revision stays"
    assert np.array_equal(actions(Policy.load(str(pushed.address))), actions(other))


def test_an_export_comes_back_bit_for_bit_without_torch(server: HubServer, run: Path, tmp_path: Path) -> None:
    folder = run / "export_nfe1"
    push(run, "me/slalom")
    push(folder, "me/slalom")
    files = server.repositories["me/slalom"].files()
    assert sorted(files) == [".gitattributes", "README.md", "export.json", "policy.onnx"], (
        "one policy a repository"
    )
    want = exported_actions(ExportedPolicy.load(folder))
    assert np.array_equal(exported_actions(ExportedPolicy.load("hf://me/slalom")), want)
    with pytest.raises(FlowleapError, match="is an export, which acts without torch"):
        Policy.load("hf://me/slalom")
    code = (
        "import sys; from flowleap.policy.deploy.runtime import ExportedPolicy;"
        "from flowleap.policy.deploy.hub import push; pushed = push(sys.argv[1], 'me/again');"
        "print(ExportedPolicy.load(str(pushed.address)).steps, 'torch' in sys.modules)"
    )
    environment = {**os.environ, **server.environment(tmp_path / "another cache")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "False"]
    again = server.repositories["me/again"].files()
    assert {**again, "README.md": b""} == {**files, "README.md": b""}


def test_verbs_take_addresses_and_leave_the_cache_alone(server: HubServer, run: Path, tmp_path: Path) -> None:
    commit = push(run, "me/slalom", revision="v1").address.revision
    assert commit
    assert server.repositories["me/slalom"].find("main") != commit
    assert cli.main(["eval", "checkpoint=hf://me/slalom@v1", "episodes=1", "n_envs=1", "videos=0"]) == 0
    assert cli.main(["export", "checkpoint=hf://me/slalom@v1"]) == 0
    results = tmp_path / "runs" / "hub" / "me" / "slalom" / commit[:8]
    (file,) = (results / "eval").glob("*.json")
    actor = json.loads(file.read_text())["actor"]
    assert (actor["path"], actor["hub"]) == ("hf://me/slalom@v1", f"hf://me/slalom@{commit}")
    assert ExportedPolicy.load(results / "export_nfe1").manifest["checkpoint"]["name"] == commit
    (snapshot,) = (tmp_path / "cache" / "hub" / "models--me--slalom" / "snapshots").iterdir()
    assert sorted(path.name for path in snapshot.iterdir()) == ["model.safetensors", "policy.json"]


def test_training_does_not_go_on_from_the_hub(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "resume=hf://me/slalom"]) == 1
    assert "can act and be exported, not trained further" in capsys.readouterr().err


def test_what_is_no_policy_is_not_fetched(server: HubServer, run: Path) -> None:
    files = {path.name: path.read_bytes() for path in (run / "checkpoints" / "last").iterdir()}
    repository = Repository()
    repository.commit(
        "main", {**files, "evil.pkl": b"x", "sub/policy.json": b"{}", "README.md": b""}, "by hand"
    )
    server.repositories["me/odd"] = repository
    Policy.load("hf://me/odd")
    assert server.fetched() == ["model.safetensors", "policy.json"]
    repository.commit("main", {"config.json": b"{}"}, "another library's")
    with pytest.raises(
        FlowleapError, match=r"hf://me/odd holds no policy of flowleap.*policy.json nor export.json"
    ):
        Policy.load("hf://me/odd")
    repository.commit("main", {"policy.json": files["policy.json"]}, "half")
    with pytest.raises(FlowleapError, match=r"hf://me/odd: model.safetensors is missing"):
        Policy.load("hf://me/odd")
    repository.commit("main", {**files, "model.safetensors": files["model.safetensors"][:-9]}, "damaged")
    with pytest.raises(FlowleapError, match="the checkpoint is damaged"):
        Policy.load("hf://me/odd")


# What goes wrong


def test_offline_the_cache_serves(server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    push(run, "me/slalom")
    want = actions(Policy.load("hf://me/slalom"))
    server.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert np.array_equal(actions(Policy.load("hf://me/slalom")), want)
    with pytest.raises(
        FlowleapError, match=r"\(HF_HUB_OFFLINE is set, and it is not in the cache\); where there is a"
    ):
        Policy.load("hf://me/other")
    with pytest.raises(FlowleapError, match=r"hf://me/slalom cannot be written \(HF_HUB_OFFLINE is set\)"):
        push(run, "me/slalom")
    assert server.asked == []


def test_no_network_is_one_line_and_the_cache_serves(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = HubServer()
    with serving(server, monkeypatch):
        use(server, tmp_path / "cache", monkeypatch)
        push(run, "me/slalom")
        want = actions(Policy.load("hf://me/slalom"))
    with HubServer() as closed:
        use(closed, tmp_path / "cache", monkeypatch)
    assert np.array_equal(actions(Policy.load("hf://me/slalom")), want)
    with pytest.raises(
        FlowleapError, match=r"\(the Hub cannot be reached, and it is not in the cache\); .*`hf download"
    ):
        Policy.load("hf://me/other")
    with pytest.raises(FlowleapError, match=r"cannot be written \(the Hub cannot be reached: .*HTTPS_PROXY"):
        push(run, "me/slalom")


def refusal(path: str) -> str:
    with pytest.raises(FlowleapError) as caught:
        Policy.load(path)
    return str(caught.value)


def test_refusals_say_what_to_do(server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(run, "me/slalom", private=True)
    assert server.repositories["me/slalom"].private
    assert "(it has no revision 'v9')" in refusal("hf://me/slalom@v9")
    assert "(there is no such model, or it is private); check the name" in refusal("hf://me/nothing")
    monkeypatch.setenv("HF_TOKEN", "")
    assert "no such model, or it is private); check the name; a private one needs a token" in refusal(
        "hf://me/slalom"
    )
    server.repositories["me/gated"] = Repository(gated=True)
    assert "(access is restricted); ask for it on https://huggingface.co/me/gated" in refusal("hf://me/gated")
    server.status, server.error = 401, ("", "Invalid credentials in Authorization header")
    assert "(the token is not valid); `hf auth login`, or set HF_TOKEN" in refusal("hf://me/slalom")
    server.status, server.error = 403, ("", "Forbidden")
    assert "(the token may not read it)" in refusal("hf://me/slalom")
    server.status, server.error = 503, ("", "")
    assert "(the Hub answers 503)" in refusal("hf://me/slalom")


def test_pushes_that_cannot_be(server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.closed.add("them")
    server.repositories["them/old"] = Repository()
    for name in ("them/new", "them/old"):
        with pytest.raises(
            FlowleapError, match=rf"hf://{name} cannot be written \(the token may not write to 'them'\)"
        ):
            push(run, name)
    push(run, "me/open")
    before = dict(server.repositories["me/open"].commits)
    with pytest.raises(FlowleapError, match="is public already, so nothing was pushed"):
        push(run, "me/open", private=True)
    assert server.repositories["me/open"].commits == before
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(FlowleapError, match=r"\(the token is not valid\); `hf auth login`, or set HF_TOKEN"):
        push(run, "me/open")
    monkeypatch.delenv("HF_TOKEN")
    server.asked.clear()
    with pytest.raises(FlowleapError, match=r"\(there is no token\); `hf auth login`, or set HF_TOKEN"):
        push(run, "me/open")
    for to in ("open", "me/open@v1", "a/b/c", "me/op en", "../x"):
        with pytest.raises(FlowleapError, match=r"is no repository of the Hub|cannot be written"):
            push(run, to)
    with pytest.raises(FlowleapError, match="license=MIT! is no identifier"):
        push(run, "me/open", license="MIT!")
    with pytest.raises(FlowleapError, match="does not exist"):
        push(run / "nowhere", "me/open")
    assert server.asked == []


def test_a_download_that_breaks_off_goes_on(
    server: HubServer, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(run, "me/slalom")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server.cuts = [100] * 40
    with pytest.raises(FlowleapError, match=r"\(the transfer broke off: .*\); check the network.* goes on"):
        Policy.load("hf://me/slalom")
    server.cuts = []
    assert np.array_equal(actions(Policy.load("hf://me/slalom")), actions(Policy.load(run)))


@pytest.mark.parametrize("text", ["hf://me", "hf://me/x@", "hf://me/x y", "hf://a/b/c", "hf://a/../b"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(FlowleapError, match="write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"):
        Policy.load(text)


def test_addresses() -> None:
    assert Address.parse("hf://me/x.y@refs/pr/1", "model") == Address("me/x.y", "refs/pr/1")
    assert Address.parse(Path("hf://me/x"), "model") == Address.parse(r"hf:\me\x", "model") == Address("me/x")
    assert Address.parse("hf://datasets/me/x", "dataset") == Address("me/x", None, "dataset")
    assert Address.parse("runs/pusht", "model") is None
    assert str(destination("hf://me/x")) == "hf://me/x"
    cached = "/home/me/.cache/huggingface/hub/datasets--me--my-data/snapshots/abc123"
    assert Address.cached_at(cached) == Address("me/my-data", "abc123", "dataset")
    with pytest.raises(FlowleapError, match=r"checkpoint me/x does not exist; for a policy .*: hf://me/x"):
        Policy.load("me/x")


# Cards


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_of_a_run(server: HubServer, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["push", f"checkpoint={run}", "to=me/slalom", "license=apache-2.0"]
    assert cli.main([*words, "dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert server.asked == []
    assert cli.main(words) == 0
    text = server.repositories["me/slalom"].files()["README.md"].decode()
    assert text in printed
    assert set(server.validated) == {text}
    assert front_matter(text) == {
        "license": "apache-2.0",
        "library_name": "flowleap",
        "pipeline_tag": "robotics",
        "tags": ["robotics", "flowleap", "imitation-learning"],
    }
    (file,) = (run / "eval").glob("*.json")
    results = json.loads(file.read_text())
    success = results["summary"]["success"]
    low, high = (100 * bound for bound in success["interval"])
    rate = f"{success['count']}/2 = {100 * success['rate']:.1f} % [{low:.1f}, {high:.1f}]"
    assert f"| `{TASK}` | torch, `ema` weights | 1 | {rate} |" in text
    assert "| 2 | 100000 to 100001 |" in text
    assert "flowleap eval checkpoint=hf://me/slalom episodes=2 seed=100000 steps=1\n" in text
    assert "| dataset | `slalom.zarr` |" in text
    assert "| steps of training | `2` |" in text
    for key, obs in make_task(TASK).spec.observations.items():
        assert f"| `{key}` | `{[2, *obs.shape]}` | `float32` |" in text
    run_python(text)


def run_python(text: str) -> None:
    """Run the card's Python, against the stand-in."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    shape = re.search(r"# \[([\d, ]+)\], in the units", code)
    assert shape
    assert names["actions"].shape == tuple(map(int, shape[1].split(", ")))


def test_what_lerobot_needs_travels_with_an_export(server: HubServer, run: Path, tmp_path: Path) -> None:
    spec = ExportedPolicy.load(run / "export_nfe1").spec
    out = tmp_path / "export"
    shutil.copytree(run / "export_nfe1", out)
    lerobot_folder.write_files(out, spec, lerobot_folder.names_of(spec, True))
    push(out, "me/robot")
    got = hub.policy_folder("hf://me/robot")
    for name in hub.LEROBOT_FILES:
        assert (got / name).read_bytes() == (out / name).read_bytes()


def test_the_card_of_an_export(server: HubServer, run: Path) -> None:
    push(run / "export_nfe1", "me/onnx")
    text = server.repositories["me/onnx"].files()["README.md"].decode()
    assert "| torch, `ema` weights | 1 |" in text, "the same weights at the same NFE, measured in torch"
    assert "flowleap eval checkpoint=hf://me/onnx episodes=2 seed=100000\n" in text
    assert "| dataset | `slalom.zarr` |" in text
    assert "from flowleap.policy.deploy.runtime import ExportedPolicy" in text
    run_python(text)


def test_a_card_without_results_says_so(run: Path, tmp_path: Path) -> None:
    train(tmp_path / "new", 1)
    (tmp_path / "new" / "eval").mkdir()
    (stranger,) = (run / "eval").glob("*.json")
    (tmp_path / "new" / "eval" / "older.json").write_bytes(stranger.read_bytes())
    (tmp_path / "new" / "eval" / "broken.json").write_text('{"summary": 1}')
    text = card(prepare(tmp_path / "new").subject, Address("me/new"))
    assert "Nothing was measured" in text
    assert "`broken.json`, `older.json`" in text
    assert "episodes=" not in text
    assert "license" not in front_matter(text)


def test_names_in_a_card_are_text(run: Path) -> None:
    evil = "`</code><script>|x|\n# head\n---\n[a](javascript:b) ${{ $$ "
    prepared = prepare(run)
    subject = prepared.subject
    observation = next(iter(subject.spec.observations.values()))
    spec = type(subject.spec)(
        {f'a"b\n```\n{evil}': observation}, 2, source={"versions": {evil: evil}}, control_hz=10.0
    )
    info = {"task": {"name": evil}, "dataset": f"hf://{evil}", "step": evil, "trainer": {"seed": evil}}
    hostile = type(subject)("checkpoint", spec, None, {"objective": {"name": evil}}, info, {evil: evil})
    text = card(hostile, Address("me/x"))
    assert list(front_matter(text)) == ["library_name", "pipeline_tag", "tags"]
    (fenced,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    compile(fenced, "card", "exec")
    outside = re.sub(r"^```\w+\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for word in ("script", "javascript", "$$", "# head"):
        assert word in outside
        for line in outside.splitlines():
            plain = "".join(line.split("`")[::2])
            assert line.count("`") % 2 == 0
            assert word not in plain
    tables = [line for line in outside.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {3, 5}


def test_the_token_is_nowhere(server: HubServer, run: Path) -> None:
    push(run, "me/slalom")
    assert all(TOKEN.encode() not in data for data in server.repositories["me/slalom"].files().values())
