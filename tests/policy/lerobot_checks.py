"""What test_lerobot.py lets a Python with lerobot do: `python lerobot_checks.py FOLDER`, all in one process.

FOLDER holds `export` (of pusht/keypoints) and `site` (where lerobot_policy_flowleap was installed). The last line of
the output is JSON: check -> null, or what went wrong, or "skip: ..." and why.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np

FOLDER = Path(sys.argv[1])
EXPORT = FOLDER / "export"
os.environ["HF_LEROBOT_HOME"] = str(FOLDER / "home")
PLUGIN = "--policy.discover_packages_path=flowleap.lerobot"
CHECKS: list[Callable[[], None]] = []


class Skipped(Exception):
    """Something is not installed."""


def check(function: Callable[[], None]) -> Callable[[], None]:
    """List a check; they run in the order of the file."""
    CHECKS.append(function)
    return function


def program(name: str, *words: str) -> None:
    """One of lerobot's programs, as its command line starts it."""
    sys.argv = [name, PLUGIN, *words]
    importlib.import_module(f"lerobot.scripts.{name}").main()


def frames(count: int, seed: int = 0) -> Any:
    """So many frames of Push-T as lerobot hands them on, [1, ...] tensors."""
    import torch

    rng = np.random.default_rng(seed)
    names = {"observation.state": 2, "observation.environment_state": 16}
    sizes = names.items()
    return [
        {name: torch.from_numpy(rng.uniform(0, 512, (1, n)).astype(np.float32)) for name, n in sizes}
        for _ in range(count)
    ]


def load(**changes: Any) -> Any:
    """The export behind lerobot's methods, some options changed."""
    from lerobot.configs.policies import PreTrainedConfig

    from flowleap.lerobot.modeling_flowleap import FlowleapPolicy

    config = PreTrainedConfig.from_pretrained(EXPORT)
    for name, value in changes.items():
        setattr(config, name, value)
    return FlowleapPolicy.from_pretrained(EXPORT, config=config)


@check
def installed_distribution_is_found() -> None:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    assert "flowleap" not in PreTrainedConfig.get_known_choices()
    sys.path.insert(0, str(FOLDER / "site"))
    register_third_party_plugins()
    assert "lerobot_policy_flowleap" in sys.modules
    assert "flowleap" in PreTrainedConfig.get_known_choices()


@check
def files_are_those_that_lerobot_writes() -> None:
    from lerobot.policies import make_pre_post_processors

    from flowleap.lerobot.processor_flowleap import make_flowleap_pre_post_processors

    policy = load()
    out = FOLDER / "written"
    for pipeline in make_flowleap_pre_post_processors(policy.config):
        pipeline.save_pretrained(out)
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        assert json.loads((out / name).read_text()) == json.loads((EXPORT / name).read_text()), name
    policy.save_pretrained(out)
    again = type(policy).from_pretrained(out)
    assert again.config.names == policy.config.names
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(EXPORT))
    (frame,) = frames(1)
    assert (before(dict(frame))["observation.state"] == frame["observation.state"]).all()
    assert (after(frame["observation.state"]) == frame["observation.state"]).all()


@check
def select_action_keeps_history_and_queue() -> None:
    from flowleap.policy.core.noise import episode_noise

    policy = load(noise_seed=5)
    export, spec, seen = policy.exported, policy.spec, frames(20)
    for episode in range(2):
        policy.reset()
        generator = episode_noise(5 + episode)
        actions = np.concatenate([policy.select_action(frame).numpy() for frame in seen])
        for start in (0, 8, 16):
            pair = [seen[max(start - 1, 0)], seen[start]]
            own = zip(("agent_pos", "keypoints"), seen[0], strict=True)
            obs = {key: np.stack([frame[name].numpy() for frame in pair], 1) for key, name in own}
            noise = generator.standard_normal((1, spec.horizon, spec.action_dim), dtype=np.float32)
            expected = export.act(obs, noise)[0]
            assert np.array_equal(actions[start : start + 8], expected[: 20 - start]), (episode, start)


@check
def chunk_repeats_a_frame_and_takes_given_history() -> None:
    import torch

    policy = load()
    one, two = frames(2)
    noise = torch.randn(1, 16, 2)
    policy.predict_action_chunk(one, noise=noise)
    alone = policy.predict_action_chunk(two, noise=noise, inference_delay=1, prev_chunk_left_over=None)
    assert alone.shape == (1, 16, 2)
    twice = {name: torch.stack([two[name], two[name]], 1) for name in two}
    assert torch.equal(alone, policy.predict_action_chunk(twice, noise=noise))
    both = {name: torch.stack([one[name], two[name]], 1) for name in two}
    assert not torch.equal(alone, policy.predict_action_chunk(both, noise=noise))


@check
def prefix_begins_with_the_action_of_the_observed_frame() -> None:
    import torch

    policy = load()
    (frame,) = frames(1)
    plan = policy.predict_action_chunk(frame)[0]
    left = torch.zeros(10, 2)
    left[:3] = plan[13:]
    # Not trained with a prefix: there is none.
    assert policy._prefix(2, left) is None
    policy.exported.prefix = 6
    assert np.array_equal(policy._prefix(2, left)[0], plan[12:14])
    # lerobot's zeros, which fill up what is left, are no actions.
    assert np.array_equal(policy._prefix(9, left)[0], plan[12:])
    assert policy._prefix(0, left) is None
    assert policy._prefix(2, left + 1) is None
    policy.reset()
    assert policy._prefix(2, left) is None


@check
def actions_are_kept_in_bounds() -> None:
    clip = [[200.0, 0.0], [210.0, 512.0]]
    policy = load(clip=clip)
    (frame,) = frames(1)
    chunk = policy.predict_action_chunk(frame).numpy()
    assert 200 <= chunk[..., 0].min() < chunk[..., 0].max() <= 210


@check
def errors_name_the_remedy() -> None:
    from flowleap.policy.core.errors import FlowleapError

    policy = load()
    (frame,) = frames(1)
    cases: list[tuple[Callable[[], Any], str]] = [
        (policy.get_optim_params, "--policy.type=flowleap"),
        (lambda: policy.select_action({"observation.state": frame["observation.state"]}), "--rename_map"),
        (
            lambda: policy.select_action({**frame, "observation.state": frame["observation.state"][:, :1]}),
            "1 numbers",
        ),
        (lambda: load(names={"agent_pos": "observation.state"}), "'keypoints'"),
        (lambda: load(n_action_steps=17), "horizon=16"),
        (lambda: load(clip=[[0.0], [1.0]]), "two lists of 2"),
        (lambda: type(policy).from_pretrained(FOLDER / "site", config=policy.config), "lerobot=true"),
    ]
    for call, words in cases:
        try:
            call()
        except FlowleapError as error:
            said = str(error)
        else:
            said = "nothing"
        assert words in said, said


@check
def eval_equals_flowleap_eval() -> None:
    from flowleap.policy.deploy.runtime import ExportedPolicy
    from flowleap.scripts.studies import lerobot_check

    if importlib.util.find_spec("gym_pusht") is None:
        raise Skipped("gym-pusht is not installed there")
    lerobot_check._run = program
    report = lerobot_check.compare(EXPORT, ExportedPolicy.load(EXPORT), FOLDER, seed=3, episodes=2)
    assert report["max_abs_difference"] <= 1e-6
    assert report["actions"] > 100
    assert report["max_reward_difference"] < 1e-9


@check
def rollout_serves_the_fake_robot() -> None:
    from flowleap.policy.core.spec import Spec
    from flowleap.policy.deploy.runtime import ExportedPolicy
    from flowleap.scripts.studies import lerobot_check

    lerobot_check._run = program
    spec: Spec = ExportedPolicy.load(EXPORT).spec
    options: Any = SimpleNamespace(fps=30, seconds=2)
    for inference, threshold in (("sync", None), ("rtc", 7)):
        report = lerobot_check.drive(EXPORT, spec, FOLDER, options, inference, threshold)
        # Less than in docs/results/lerobot.json: tests share their machine.
        assert report["ticks"] > 40, report
        assert report["share"] > 0.9, report


@check
def training_checkpoints_and_resumes() -> None:
    from flowleap.datasets.formats.lerobot_writer import LeRobotWriter
    from flowleap.lerobot.modeling_flowleap import FlowleapPolicy
    from flowleap.policy import ObsKey, Policy, Spec

    if importlib.util.find_spec("accelerate") is None:
        raise Skipped("lerobot[training] is not installed there")
    rng = np.random.default_rng(0)
    keys = {"state": ObsKey((3,)), "front": ObsKey((16, 16, 3), "uint8", "rgb")}
    columns: list[dict[str, np.ndarray]] = []
    with LeRobotWriter(FOLDER / "data", Spec(keys, 2, control_hz=10.0)) as writer:
        for _ in range(2):
            images = rng.integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
            vectors = {"state": rng.normal(size=(12, 3)), "action": rng.uniform(-2, 5, (12, 2))}
            columns.append({name: x.astype(np.float32) for name, x in vectors.items()})
            writer.add({**columns[-1], "front": images})
    out = FOLDER / "train"
    data = ["--dataset.repo_id=local/tiny", f"--dataset.root={FOLDER / 'data'}"]
    size = '{"backbone": {"width": 16}, "encoder": {"features": 8, "frames": 1}, "head_sigma": 0.05}'
    words = ["--policy.type=flowleap", "--policy.device=cpu", "--policy.push_to_hub=false", *data]
    words += [
        f"--policy.options={size}",
        "--batch_size=4",
        "--steps=3",
        "--num_workers=0",
        f"--output_dir={out}",
    ]
    program("lerobot_train", *words)
    trained = out / "checkpoints" / "last" / "pretrained_model"
    policy = Policy.load(trained)
    assert policy.info["step"] == 3
    assert policy.config["backbone"]["width"] == 16
    assert policy.head_sigma == 0.05
    assert set(policy.spec.observations) == {"state", "front"}
    assert policy.spec.control_hz == 10
    # Fitted on the dataset's statistics as `flowleap train` fits on its frames.
    other = Policy(policy.spec, policy.config)
    whole = {key: np.concatenate([c[key] for c in columns]) for key in ("state", "action")}
    other.normalizer.fit(whole)
    for key in whole:
        for a, b in zip(
            policy.normalizer.range_of(key) or (), other.normalizer.range_of(key) or (), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    raw = Policy.load(trained, "raw").state_dict()
    assert any((raw[name] != x).any() for name, x in policy.state_dict().items() if x.is_floating_point())
    program("lerobot_train", f"--config_path={trained / 'train_config.json'}", "--resume=true", "--steps=5")
    again = FlowleapPolicy.from_pretrained(out / "checkpoints" / "last" / "pretrained_model")
    assert again._step() == 5
    log = FOLDER / "cameras.json"
    words = [
        f"--policy.path={trained}",
        "--robot.type=flowleap_fake",
        "--robot.joints=3",
        "--robot.actions=2",
    ]
    words += ['--robot.images={"front": [16, 16]}', f"--robot.log={log}", "--duration=1"]
    program("lerobot_rollout", *words, "--return_to_initial_position=false")
    seen = json.loads(log.read_text())
    assert len(seen["commands"]) == len(seen["observed_s"]) > 20
    assert np.isfinite(seen["commands"]).all()


def main() -> None:
    """Run all, and print what came of them."""
    results: dict[str, str | None] = {}
    for function in CHECKS:
        start = time.perf_counter()
        try:
            function()
            results[function.__name__] = None
        except Skipped as reason:
            results[function.__name__] = f"skip: {reason}"
        except BaseException:
            results[function.__name__] = traceback.format_exc()
        print(f"{function.__name__}: {time.perf_counter() - start:.1f} s")
    sys.stderr.flush()
    print(f"\n{json.dumps(results)}")


if __name__ == "__main__":
    main()
