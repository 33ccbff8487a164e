"""The command line as a user meets it: help, overrides, errors and exit codes, completion; the small verbs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr
from packaging.requirements import Requirement

from flowleap.datasets.dataset import Dataset, open_dataset
from flowleap.datasets.formats.zarr_store import EpisodeStore, EpisodeWriter
from flowleap.datasets.quality.checks import Checks
from flowleap.datasets.quality.profile import Profile, Statistics
from flowleap.policy.core.errors import FlowleapError, FlowleapWarning
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.scripts import common, doctor
from flowleap.scripts import inspect_dataset as inspect_script
from flowleap.scripts.cli import completion, options
from flowleap.scripts.cli import main as cli
from flowleap.scripts.cli.run import compose
from flowleap.scripts.cli.verbs import VERBS
from flowleap.scripts.cli.words import overrides


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A store of three episodes: a position, a constant and an image."""
    observations = {
        "position": ObsKey((3,)),
        "mass": ObsKey((1,)),
        "image": ObsKey((16, 16, 3), "uint8", "rgb"),
    }
    path = tmp_path / "reach.zarr"
    with EpisodeWriter(path, Spec(observations, 2, control_hz=10.0), {"robot": "sawyer"}) as writer:
        for seed, n in enumerate((4, 2, 7)):
            rng = np.random.default_rng(seed)
            writer.add(
                {
                    "position": rng.uniform(-1, 1, (n, 3)),
                    "mass": np.full((n, 1), 2.5),
                    "image": rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8),
                    "action": rng.uniform(-1, 1, (n, 2)),
                },
                seed=seed,
            )
    return path


def fails(capsys: pytest.CaptureFixture[str], argv: list[str], code: int) -> str:
    """Run a command line that must fail with `code`; return its one line on stderr."""
    assert cli.main(argv) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


# The dispatcher


def test_the_overview_lists_each_verb_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert cli.main(["--help"]) == cli.main(["help"]) == 0
    assert capsys.readouterr().out == 2 * text
    for verb in VERBS:
        assert f"  {verb} " in text
        assert VERBS[verb].example in text


def test_help_needs_neither_hydra_nor_torch() -> None:
    code = (
        "import sys; from flowleap.scripts.cli import main; main.main([]);"
        "print(sorted({'torch', 'hydra', 'numpy', 'zarr', 'gymnasium'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "words", ["main.main(['benchmark', '--help'])", "completion.candidates('flowleap eval task=')"]
)
def test_verbs_without_networks_need_no_torch(words: str) -> None:
    code = f"import sys; from flowleap.scripts.cli import completion, main; {words}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_names_its_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"flowleap {verb}: ")
    assert VERBS[verb].example in text
    known = options.load_options(verb)
    for key in known.values:
        assert f"  {key}=" in text
    for group in known.choices:
        assert f"  {group}=" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_composes(verb: str) -> None:
    command, *words = VERBS[verb].example.split()
    assert (command, words[0]) == ("flowleap", verb)
    given = overrides(verb, words[1:])
    config = compose(verb, given)
    for word in given:
        assert word.partition("=")[0] in config


def test_help_follows_the_chosen_groups() -> None:
    default = options.load_options("train").values
    chosen = options.load_options(
        "train", ["task=metaworld/push-v3", "objective=flow_matching", "no=such"]
    ).values
    assert chosen["task.name"] == "metaworld/push-v3"
    assert chosen["objective.name"] == "flow_matching" != default["objective.name"]


def test_earlier_names_of_options_are_understood() -> None:
    words = ["task=metaworld/reach-v3", "cameras=[corner2]", "mirror=false", "image_cache_mb=0"]
    config = compose("train", words)
    assert config.task.kwargs.cameras == ["corner2"]
    assert (config.data.mirror, config.data.image_cache_mb) == (False, 0)
    assert compose("collect", words[:2]).task.kwargs.cameras == ["corner2"]


def test_tasks_of_gymnasium_compose_by_their_id() -> None:
    defaults = {"max_steps": None, "imports": [], "wrappers": [], "keys": None}
    for name in ("gym/Pendulum-v1", "gym/my_envs:mine/Reach-v0"):
        assert compose("train", [f"task={name}"]).task == {"name": name, "kwargs": defaults}
    words = ["task=gym/Reach-v0", "task.kwargs.imports=my_envs", "task.kwargs.keys={a.b:c,d:null}"]
    words += ["task.kwargs.wrappers=[FlattenObservation,{TimeLimit:{max_episode_steps:5}},my_envs:Own]"]
    assert compose("train", words).task.kwargs == {
        "max_steps": None,
        "imports": "my_envs",
        "wrappers": ["FlattenObservation", {"TimeLimit": {"max_episode_steps": 5}}, "my_envs:Own"],
        "keys": {"a.b": "c", "d": None},
    }


def test_comments_of_yaml_files_become_help(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "# About the file,\n# in two lines.\na: 1  # one\n\n# above\nb:\n"
        "  # inner\n  c: [1, 2]\n  d: x # last\ne: 0\n"
    )
    found = options.yaml_comments(tmp_path / "a.yaml")
    assert found == {"a": "one", "b": "above", "b.c": "inner", "b.d": "last"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["inspet"], "unknown verb 'inspet'; did you mean 'inspect'?"),
        (["dataset=x", "inspect"], "the verb comes first"),
        (["--verbose"], "the verb comes first"),
        (["inspect"], "'dataset' is required"),
        (["inspect", "datset=x"], "unknown option 'datset'; did you mean 'dataset'?"),
        (["inspect", "dataset"], "cannot read 'dataset': write key=value"),
        (["list", "filter=a(b"], "cannot read 'filter=a(b'"),
        (["inspect", "--data-set=x"], "unknown flag '--data-set': options are written data_set=x"),
        (["inspect", "--experimental-rerun", "x.pickle"], "unknown flag '--experimental-rerun'"),
        (["inspect", "-sc", "install=bash"], "completion is set up without a verb"),
        (["-sc", "install=tcsh"], "-sc takes one of install=bash"),
        (["train", "trainer.lrr=1"], "unknown option 'trainer.lrr'; did you mean 'trainer.lr'?"),
        (["train", "lr=1"], "unknown option 'lr'; did you mean 'trainer.lr'?"),
        (["train", "objective=isdd"], "unknown objective 'isdd'; did you mean 'isd'? ("),
        (["train", "objective=3"], "override must be a string or a list. Got int (given: objective=3)"),
        (["train", "task=metaworld/dor-open-v3"], "did you mean 'metaworld/door-open-v3'?"),
        (["train", "--cfg", "job", "-m"], "argument -m/--multirun: not allowed with argument -c/--cfg"),
        (["list", "what=task"], "did you mean 'tasks'?"),
    ],
)
def test_wrong_command_lines(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(capsys, argv, 2)


def raising(error: BaseException) -> object:
    """Return a `main` that raises `error`."""

    def main(cfg: object) -> None:
        raise error

    return main


def test_a_mishap_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "'none.zarr' does not exist" in fails(capsys, ["inspect", "dataset=none.zarr"], 1)
    monkeypatch.setattr(inspect_script, "main", raising(FlowleapError("two\nlines")))
    assert fails(capsys, ["inspect", "dataset=x"], 1) == "error: two lines"


def test_an_interrupt_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_script, "main", raising(KeyboardInterrupt()))
    assert cli.main(["inspect", "dataset=x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [RuntimeError("boom"), ValueError("boom")])
def test_a_bug_shows_its_traceback(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_script, "main", raising(error))
    assert cli.main(["inspect", "dataset=x"]) == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "boom" in text
    assert "this is a bug in flowleap" in text.splitlines()[-1]


def test_hydra_features_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv, setting = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    assert cli.main(["train", "--cfg", "job", "task=metaworld/door-open-v3", "trainer.lr=0.5"]) == 0
    text = capsys.readouterr().out
    assert "name: metaworld/door-open-v3" in text
    assert "lr: 0.5" in text
    assert cli.main(["list", "-m", "what=formats,objectives"]) == 0
    text = capsys.readouterr().out
    assert "formats (" in text
    assert "objectives (" in text
    assert (sys.argv, os.environ.get("HYDRA_FULL_ERROR")) == (argv, setting)


def test_nothing_is_left_in_the_working_directory(tmp_path: Path) -> None:
    assert cli.main(["list", "what=formats"]) == 0
    assert cli.main(["inspect", "dataset=none.zarr"]) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("module", ["flowleap.scripts.cli.main list", "flowleap.scripts.list_choices"])
def test_modules_run_as_programs(module: str) -> None:
    command = [sys.executable, "-m", *module.split()]
    result = subprocess.run([*command, "what=formats"], capture_output=True, text=True, check=True)
    assert "zarr v2 replay buffer" in result.stdout
    assert subprocess.run([*command, "waht=formats"], capture_output=True, check=False).returncode == 2


SCRIPTS = Path(cli.__file__).parent.parent
PROGRAMS = [file for folder in (SCRIPTS, SCRIPTS / "studies") for file in sorted(folder.glob("[a-z]*.py"))]


def test_no_script_has_the_name_of_a_module_of_python() -> None:
    """The folder of a script that runs as a file comes first on `sys.path`."""
    assert not {file.stem for file in PROGRAMS} & sys.stdlib_module_names


@pytest.mark.parametrize(
    "name", ["train", "inspect_dataset", "list_choices", "studies/benchmark", "studies/toy"]
)
def test_scripts_run_as_files(name: str) -> None:
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("flowleap ")


def test_a_closed_pipe_is_no_bug() -> None:
    command = f"{sys.executable} -m flowleap.scripts.list_choices | true"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_a_terminal_without_a_letter_is_no_bug(tmp_path: Path) -> None:
    np.savez(tmp_path / "démo.npz", state=np.eye(4), action=np.eye(4), episode_ends=np.array([4]))
    command = [sys.executable, "-m", "flowleap.scripts.inspect_dataset", "dataset=démo.npz"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "dataset   d\\xe9mo.npz (npz)" in result.stdout


def test_peak_memory_without_the_module_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has neither that nor /proc, but tells the peak."""
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert common.peak_megabytes() > 10
    windows = SimpleNamespace(peak_wset=25 * 10**6)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(common.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: windows))
    assert common.peak_megabytes() == 25.0


# Completion


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flowleap insp", ["inspect "]),
        ("flowleap nothing x", []),
        ("flowleap inspect d", ["dataset=", "drop="]),
        ("flowleap inspect dataset=", []),
        ("flowleap train obj", ["objective.", "objective="]),
        ("flowleap train objective=flow", ["objective=flow_matching"]),
        ("flowleap train trainer.dry_run=", ["trainer.dry_run=true", "trainer.dry_run=false"]),
        ("flowleap train bad=1 trainer.warm", ["trainer.warmup_steps="]),
        ("flowleap train task=pusht/", ["task=pusht/keypoints", "task=pusht/pixels", "task=pusht/state"]),
        ("flowleap train task=metaworld/door-o", ["task=metaworld/door-open-v3"]),
    ],
)
def test_completion(line: str, expected: list[str]) -> None:
    assert completion.candidates(line) == expected


def test_verbs_complete() -> None:
    assert completion.candidates("flowleap ") == [f"{verb} " for verb in VERBS]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "breaks", "expected"),
    [
        ("flowleap train objective=f", "=:", "flow_matching"),
        ("flowleap train objective=f", "", "objective=flow_matching"),
        ("flowleap insp", "=:", "inspect "),
        ("flowleap train trainer.warm", "=:", "trainer.warmup_steps="),
    ],
)
def test_completion_in_bash(
    line: str, breaks: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`breaks` are the characters at which bash splits words: it replaces what follows the last of them."""
    assert cli.main(["-sc", "install=bash"]) == 0
    script = (
        f'flowleap() {{ "{sys.executable}" -m flowleap.scripts.cli.main "$@"; }}\n{capsys.readouterr().out}\n'
        f"COMP_WORDBREAKS='{breaks}' COMP_LINE='{line}' COMP_POINT={len(line)}\n"
        "_flowleap_complete; printf '[%s]' \"${COMPREPLY[@]}\""
    )
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == f"[{expected}]"


# list, inspect, convert, doctor


def test_list_shows_every_choice_with_a_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    for kind in ("tasks", "objectives", "backbones", "encoders", "formats"):
        assert re.search(rf"^{kind} \(\d+\)$", text, re.MULTILINE)
    for name in ("metaworld/door-open-v3", "pusht/keypoints", "isd", "flow_matching", "mlp", "lowdim"):
        assert re.search(rf"^  {name} +\S.*$", text, re.MULTILINE), name
    assert cli.main(["list", "what=tasks", "filter=door"]) == 0
    filtered = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert filtered
    assert all("door" in name for name in filtered)


def test_inspect_describes_a_dataset(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", f"dataset={dataset}"]) == 0
    text = capsys.readouterr().out
    for part in ("3, of 2 to 7 frames", "13 frames", "position[3]", "10 Hz", "sawyer", "1 of 1", "uint8"):
        assert part in text, part


def test_inspect_counts_what_is_not_finite(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def position() -> Statistics:
        with open_dataset(dataset) as source:
            return Profile(source, Checks(source), (2, 16, 8)).columns["position"]

    clean = EpisodeStore(dataset).read(["position"])["position"].astype(np.float64)
    statistics = position()
    np.testing.assert_allclose(statistics.low, clean.min(axis=0))
    np.testing.assert_allclose(statistics.high, clean.max(axis=0))
    np.testing.assert_allclose(statistics.mean, clean.mean(axis=0))
    np.testing.assert_allclose(statistics.std, clean.std(axis=0))
    np.testing.assert_allclose(statistics.overall, [clean.mean(), clean.std()])
    assert statistics.histogram.sum(axis=1).tolist() == [13, 13, 13]
    assert statistics.constant == []

    column = zarr.open_group(dataset)["data/position"]
    assert isinstance(column, zarr.Array)
    column[5, 1] = np.inf
    column[0, 0] = np.nan
    statistics = position()
    assert statistics.not_finite == 2
    np.testing.assert_allclose(statistics.mean[0], clean[1:, 0].mean())
    np.testing.assert_allclose(statistics.mean[1], np.delete(clean[:, 1], 5).mean())
    assert cli.main(["inspect", f"dataset={dataset}"]) == 0
    text = capsys.readouterr().out
    assert "'position' has 2 NaN or infinite numbers in 2 episodes: episode 0, episode 1" in text
    assert "'mass' is constant" in text


def test_convert_keeps_what_a_store_says(dataset: Path, tmp_path: Path) -> None:
    assert cli.main(["convert", f"source={dataset}", "out=b.zarr"]) == 0
    a, b = EpisodeStore(dataset), EpisodeStore(tmp_path / "b.zarr")
    assert (b.spec, b.attrs, b.keys) == (a.spec, a.attrs, a.keys)
    np.testing.assert_array_equal(a.episode_ends, b.episode_ends)
    np.testing.assert_array_equal(a.episode_seeds, b.episode_seeds)
    for key, values in a.read(a.keys).items():
        np.testing.assert_array_equal(values, b.read([key])[key])


def test_convert_makes_float_images_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = zarr.create_group("old.zarr", zarr_format=2)
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.float32)
    group.create_array("data/img", data=images)
    group.create_array("data/state", data=np.arange(6.0).reshape(6, 1))
    group.create_array("data/done", data=np.zeros((6, 1)))  # zarr leaves chunks of zeros out
    group.create_array("data/action", data=np.ones((6, 2), np.float32))
    group.create_array("meta/episode_ends", data=np.array([2, 6]))
    words = ["convert", "source=old.zarr", "out=new.zarr"]
    assert "data/done/0.0; copy the dataset again, or" in fails(capsys, words, 1)
    words.append("fill_missing=true")
    assert cli.main([*words, "control_hz=5", "action_convention=delta"]) == 0
    store = EpisodeStore("new.zarr")
    assert store.dtype("img") == np.uint8
    np.testing.assert_array_equal(store.read(["img"])["img"], images)
    assert store.spec is not None
    assert (store.spec.control_hz, store.spec.action_convention) == (5.0, "delta")
    capsys.readouterr()

    assert "exists already" in fails(capsys, words, 1)
    assert cli.main([*words, "overwrite=true", "keys=[state]"]) == 0
    assert EpisodeStore("new.zarr").keys == ["state", "action"]
    capsys.readouterr()

    shares = images / 255
    group.create_array("data/img", data=shares, overwrite=True)
    assert cli.main([*words, "overwrite=true"]) == 0
    np.testing.assert_array_equal(EpisodeStore("new.zarr").read(["img"])["img"], images)
    capsys.readouterr()
    shares[1, 2, 3, 0] = np.nan
    group.create_array("data/img", data=shares, overwrite=True)
    line = fails(capsys, [*words, "overwrite=true"], 1)
    assert (
        "episode 0: 'img' holds images with NaN or infinite numbers; leave out the episodes with drop=[0]"
        in line
    )
    assert "img" in EpisodeStore("new.zarr").keys, "the old store must survive"
    assert sorted(os.listdir(tmp_path)) == ["new.zarr", "old.zarr"]


def test_convert_maps_a_recording_to_a_task(pusht_human: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", f"source={pusht_human}", "out=k.zarr", "task=pusht/keypoints"]
    assert "not both" in fails(capsys, [*words, "keys=[state]"], 1)
    assert cli.main(words) == 0
    store = EpisodeStore("k.zarr")
    assert store.n_frames == 25650
    assert "keypoints" in store.keys


def test_an_interrupted_conversion_leaves_nothing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Dataset.episode

    def interrupted(source: Dataset, index: int, keys: list[str]) -> dict[str, np.ndarray]:
        if index == 2:
            raise KeyboardInterrupt
        return read(source, index, keys)

    monkeypatch.setattr(Dataset, "episode", interrupted)
    assert cli.main(["convert", f"source={dataset}", "out=b.zarr"]) == 130
    assert os.listdir(tmp_path) == [dataset.name]


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["doctor", "gl=false"]) == 0
    text = capsys.readouterr().out
    for part in ("python", "torch", "[metaworld]", "onnxruntime", "device cpu", "writable", "GiB free"):
        assert part in text, part
    monkeypatch.setattr(doctor, "packages", lambda: [doctor.Check("torch", "gone", "pip", broken=True)])
    assert cli.main(["doctor", "gl=false"]) == 1
    assert "broken core packages: torch" in capsys.readouterr().err


def test_doctor_says_how_to_get_what_is_missing() -> None:
    assert doctor.core_package(Requirement("no-such-package>=1")).broken
    assert doctor.core_package(Requirement("numpy>=1")).remedy == ""
    old = doctor.core_package(Requirement("numpy>=999"))
    assert old.broken
    assert "needs >=999" in old.found
    absent = doctor.optional_package(Requirement("no-such-package"), "robotics")
    assert (absent.remedy, absent.broken) == ("pip install 'flowleap[robotics]'", False)
    assert "needs >=999" in doctor.optional_package(Requirement("numpy>=999"), "x").found


def test_doctor_notices_a_folder_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    check, *_ = doctor.storage(tmp_path / "not" / "yet" / "there")
    assert "Permission denied" in check.found
    assert check.remedy


def test_warnings_are_one_line_without_the_place_in_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dispatch(verb: str, argv: list[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            print(warnings.formatwarning("too far", FlowleapWarning, __file__, 1), file=sys.stderr, end="")
            print(warnings.formatwarning("old", DeprecationWarning, __file__, 1), file=sys.stderr, end="")

    monkeypatch.setattr(cli, "_dispatch", dispatch)
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("warning: too far\n")
    assert f"{__file__}:1: DeprecationWarning: old" in said
    assert "warning: too far" not in warnings.formatwarning("too far", FlowleapWarning, __file__, 1)
