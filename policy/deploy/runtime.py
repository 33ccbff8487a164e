"""Acting with an exported policy: numpy and onnxruntime (or OpenVINO) only, no torch at import or run time.

    policy = ExportedPolicy.load("runs/door/export_nfe1")
    chunk = policy.act({"state": state})        # [B, To, 39] -> [B, Ta, A], real units

An exported folder holds `policy.onnx` (weights inside) and `export.json`. Nothing in it is trusted: the JSON
is checked field by field, the model against its digest and against the Spec, and a model that refers to files
outside itself is refused. onnxruntime runs its own kernels only, as no custom-op library is registered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowleap.policy.core.errors import FlowleapError, require_int, require_whole, suggest
from flowleap.policy.core.hub import policy_folder
from flowleap.policy.core.inputs import InputCheck, Range, Unusual, input_advice
from flowleap.policy.core.noise import ancestral_noise
from flowleap.policy.core.spec import ObsKey, Spec, read_json
from flowleap.policy.deploy.backends import Session, open_session
from flowleap.policy.deploy.onnx_file import refuse_external_data

FORMAT = "flowleap-export"
FORMAT_VERSION = 1
MODEL = "policy.onnx"
MANIFEST = "export.json"
NOISE = "noise"
PREFIX_INPUTS = ("prefix", "given")
ACTION = "action"
FINGERPRINT = "flowleap_contract"  # metadata entry of the model: digest of the manifest's contract fields
CONTRACT = {"spec": dict, "steps": int, "objective": str, "inputs": dict}
_ONNX_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int64)": np.dtype(np.int64),
}


def graph_inputs(spec: Spec) -> dict[str, tuple[list[int], np.dtype]]:
    """Shape [To, *shape] and dtype of each observation in the graph: uint8 for images, else float32."""
    images, others = np.dtype(np.uint8), np.dtype(np.float32)
    return {
        key: ([spec.n_obs_steps, *obs.shape], images if obs.kind == "rgb" else others)
        for key, obs in spec.observations.items()
    }


def noise_shape(spec: Spec, draws: int) -> list[int]:
    """Shape of a sample's noise in the graph: [H, A], or [draws, H, A] where the sampler draws on its way."""
    return [*([draws] if draws > 1 else []), spec.horizon, spec.action_dim]


def prefix_inputs(spec: Spec, prefix: int) -> list[tuple[list[int], np.dtype]]:
    """Shape and dtype of the graph's `PREFIX_INPUTS`: given actions [P, A], and how many of them count."""
    if not prefix:
        return []
    return [([prefix, spec.action_dim], np.dtype(np.float32)), ([], np.dtype(np.int64))]


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """Digest of what a caller relies on: Spec, NFE, objective and input names."""
    contract = {name: manifest[name] for name in CONTRACT}
    return hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()


class ExportedPolicy:
    """An exported policy, ready to act on the CPU.

    Attributes:
        spec: observation keys, action, To, H, Ta.
        steps: NFE, fixed at export.
        objective: name of the training objective.
        task: `{"name", "kwargs"}` of the task it was trained for, or None.
        manifest: all of `export.json`, the parity and latency reports included.
        actions: N, how many actions of the chunk the graph returns: H, or Ta in exports of flowleap 0.1.
        prefix: how many actions, at most, may be given to `chunk`; 0 for a policy that was not trained to go on.
        inputs: what is done about observations that are not finite, or far outside of the range of training.
    """

    def __init__(
        self, manifest: dict[str, Any], spec: Spec, session: Any, seed: int | None, inputs: InputCheck
    ) -> None:
        self.manifest, self.spec = manifest, spec
        self.steps: int = manifest["steps"]
        self.objective: str = manifest["objective"]
        task = manifest.get("task")
        self.task: dict[str, Any] | None = task if isinstance(task, dict) else None
        self._session, self.inputs = session, inputs
        self._rng = np.random.default_rng(seed)
        self._noise_shape = (spec.horizon, spec.action_dim)
        self._draws: int = manifest.get("draws", 1)
        self.actions: int = manifest.get("actions", spec.n_action_steps)
        self.prefix: int = manifest.get("prefix", 0)
        self._candidates: bool = manifest.get("candidates", False)
        self._inputs = graph_inputs(spec)

    @classmethod
    def load(
        cls, folder: str | Path, threads: int = 1, seed: int | None = None, unusual: Unusual = "warn"
    ) -> ExportedPolicy:
        """Open an exported folder.

        Args:
            folder: where `export.json` and `policy.onnx` are; or `hf://OWNER/NAME@REVISION` of the Hugging Face Hub.
            threads: CPU threads; one is fastest for small networks at batch 1.
            seed: of the noise drawn by `act`; `None` draws a fresh one.
            unusual: `warn` of observations far outside of the range of training, `stop` at them, or `ignore` them.

        Raises:
            FlowleapError: the package of its backend is missing, or the folder is missing, damaged, tampered with or of
                another format version; the message names the file and the field.
        """
        require_whole("threads", threads)
        folder = policy_folder(folder)
        manifest = read_manifest(folder)
        spec = Spec.from_dict(manifest["spec"], f"{folder / MANIFEST}: spec")
        if set(manifest["inputs"]) != set(spec.observations):
            raise FlowleapError(
                f"{folder / MANIFEST}: field 'inputs' names {sorted(manifest['inputs'])}, "
                f"but the Spec has {sorted(spec.observations)}"
            )
        session = _open_session(folder / MODEL, manifest, threads)
        _check_graph(folder, session, manifest, spec)
        inputs = InputCheck(_ranges(folder, manifest, spec).get, unusual)
        return cls(manifest, spec, session, seed, inputs)

    def example(self) -> dict[str, np.ndarray]:
        """An observation {key: [1, To, *shape]} from the middle of what was trained on; black images."""
        zeros = {key: np.zeros((1, *shape), dtype) for key, (shape, dtype) in self._inputs.items()}
        for key in zeros:
            if (known := self.inputs.range_of(key)) is not None:
                scale, offset = known
                zeros[key] += (-offset / scale).astype(np.float32)
        return zeros

    def act(
        self,
        obs: Mapping[str, np.ndarray],
        noise: np.ndarray | None = None,
        prefix: np.ndarray | None = None,
    ) -> np.ndarray:
        """Choose the actions to execute, [B, Ta, A] float32 in real units: the beginning of `chunk`."""
        return self.chunk(obs, noise, prefix)[..., : self.spec.n_action_steps, :]

    def chunk(
        self,
        obs: Mapping[str, np.ndarray],
        noise: np.ndarray | None = None,
        prefix: np.ndarray | None = None,
    ) -> np.ndarray:
        """Predict an action chunk.

        Args:
            obs: {key: [B, To, *shape]}, real units (images uint8), the current frame last; others ignored. Images may
                also be as large as their camera takes them: they are cropped and resized as in training.
            noise: z ~ N(0, I) [B, H, A]; drawn from the policy's own generator if `None`. [B, K, H, A]: K chunks for
                each observation, which is encoded once.
            prefix: actions [B, P, A] in real units that are decided already, the first one for the current frame; the
                chunk repeats them and goes on from there. P is at most `self.prefix`.

        Returns:
            [B, N, A] or [B, K, N, A] float32, real units; the first action is the one for the current frame.

        Raises:
            FlowleapError: a key is missing, a shape or dtype is not the Spec's, or a number is NaN or infinite.
        """
        feed: dict[str, np.ndarray] = {}
        batch = 0
        for key, (shape, dtype) in self._inputs.items():
            if key not in obs:
                raise FlowleapError(f"observation '{key}' is missing; got {sorted(obs)}{suggest(key, obs)}")
            known = self.spec.observations[key]
            array = known.see(_as_input(f"observation '{key}'", obs[key], dtype, known))
            batch = batch or (len(array) if array.ndim else 0)
            if array.shape != (batch, *shape) or not batch:
                raise FlowleapError(
                    f"observation '{key}': expected [batch, {', '.join(map(str, shape))}]"
                    f"{f' with batch {batch}' if batch else ''}, got {list(array.shape)}"
                    f"{'; add the batch axis with x[None]' if list(array.shape) == shape else ''}"
                    f"{input_advice(known, array.shape, str(array.dtype))}"
                )
            if not known.image:
                self.inputs(key, array)
            feed[self.manifest["inputs"][key]] = np.ascontiguousarray(array)
        if noise is None:
            noise = self._rng.standard_normal((batch, *self._noise_shape), dtype=np.float32)
        noise = _as_input(NOISE, noise, np.dtype(np.float32))
        many = noise.ndim == 4 and self._candidates
        if noise.ndim == 4 and not many:
            raise FlowleapError(
                "noise: this export takes one noise for an observation, as do DDPM at 100 steps and exports of "
                "flowleap 0.1: export it again, or choose no best_of"
            )
        if noise.shape[:1] + noise.shape[1 + many :] != (batch, *self._noise_shape) or not noise.size:
            raise FlowleapError(
                f"noise: expected {[batch, *self._noise_shape]} = [batch, H, A], got {list(noise.shape)}"
            )
        if self._candidates:
            feed[NOISE] = noise if many else noise[:, None]
        else:
            feed[NOISE] = noise if self._draws == 1 else ancestral_noise(noise, self._draws)
        feed |= self._given(prefix, batch)
        chunk: np.ndarray = self._session.run([ACTION], feed)[0]
        return chunk[:, 0] if self._candidates and not many else chunk

    def _given(self, prefix: np.ndarray | None, batch: int) -> dict[str, np.ndarray]:
        """The graph's inputs for actions that are decided already."""
        if prefix is not None and not self.prefix:
            raise FlowleapError(
                "prefix: this policy was not trained to go on from given actions; train it with prefix=N"
            )
        if not self.prefix:
            return {}
        actions = np.zeros((batch, self.prefix, self.spec.action_dim), np.float32)
        known = actions[:, :0] if prefix is None else _as_input("prefix", prefix, np.dtype(np.float32))
        count = known.shape[1] if known.ndim == 3 else 0
        if known.shape != (batch, count, self.spec.action_dim) or count > self.prefix:
            expected = f"[{batch}, {self.prefix} or fewer, {self.spec.action_dim}]"
            raise FlowleapError(f"prefix: expected {expected}, got {list(known.shape)}")
        if not np.isfinite(known).all():
            raise FlowleapError("prefix: the given actions hold NaN or infinite numbers")
        actions[:, :count] = known
        return dict(zip(PREFIX_INPUTS, (actions, np.full(batch, count, np.int64)), strict=True))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Parse and check `export.json`; raise `FlowleapError` naming the file and the field."""
    file = folder / MANIFEST
    if not file.is_file():
        raise FlowleapError(
            f"{folder} is not an exported policy: it has no {MANIFEST} (see `flowleap export`)"
        )
    fields, what = {**CONTRACT, "sha256": str}, ("export", "an exported policy")
    remedy = "export again, or install the flowleap that wrote it"
    return read_json(file, (FORMAT, FORMAT_VERSION), fields, what, remedy)


def _open_session(file: Path, manifest: Mapping[str, Any], threads: int) -> Session:
    """Check the bytes of the model, then hand these very bytes to what runs it."""
    try:
        model = file.read_bytes()
    except OSError as error:
        raise FlowleapError(f"{file}: {error.strerror}; copy the exported folder again") from error
    if hashlib.sha256(model).hexdigest() != manifest["sha256"]:
        raise FlowleapError(
            f"{file} is damaged: its sha256 is not the one in {MANIFEST}; copy or export it again"
        )
    refuse_external_data(model, file)  # it would be followed to wherever the path leads
    return open_session(manifest, model, file, threads)


def _ranges(folder: Path, manifest: Mapping[str, Any], spec: Spec) -> dict[str, Range]:
    """The normalisation of each key; none where an older export does not name it."""
    ranges: dict[str, Range] = {}
    for key, pair in _object(manifest.get("ranges", {})).items():
        shape = spec.observations[key].statistics_shape if key in spec.observations else None
        try:
            scale, offset = (np.asarray(part, np.float32) for part in pair)
            fits = (
                scale.shape == offset.shape == shape
                and np.isfinite([scale, offset]).all()
                and (scale > 0).all()
            )
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise FlowleapError(f"{folder / MANIFEST}: field 'ranges' does not fit '{key}'; export it again")
        ranges[key] = (scale, offset)
    return ranges


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _check_graph(folder: Path, session: Any, manifest: Mapping[str, Any], spec: Spec) -> None:
    """Raise unless the model is the one that `export.json` describes."""
    other = f"{folder / MANIFEST} does not describe {MODEL}"
    metadata = session.get_modelmeta().custom_metadata_map
    if metadata.get(FINGERPRINT) != fingerprint(manifest):
        raise FlowleapError(
            f"{other}: {', '.join(CONTRACT)} are not the ones it was exported with; export it again"
        )
    wanted: dict[str, tuple[list[Any], np.dtype]] = {
        manifest["inputs"][key]: shape_and_dtype for key, shape_and_dtype in graph_inputs(spec).items()
    }
    draws = require_int(f"{folder / MANIFEST}: field 'draws'", manifest.get("draws", 1), 1, 1000)
    candidates = manifest.get("candidates", False) is True
    wanted[NOISE] = (
        [*(["candidates"] if candidates else []), *noise_shape(spec, draws)],
        np.dtype(np.float32),
    )
    prefix = require_int(f"{folder / MANIFEST}: field 'prefix'", manifest.get("prefix", 0), 0, spec.horizon)
    wanted |= dict(zip(PREFIX_INPUTS, prefix_inputs(spec, prefix), strict=False))
    found = {x.name: (list(x.shape[1:]), _ONNX_TYPES.get(x.type)) for x in session.get_inputs()}
    if found != wanted:
        raise FlowleapError(f"{other}: its inputs are {found}, expected {wanted}; export it again")
    outputs = {x.name: list(x.shape[1:]) for x in session.get_outputs()}
    field = f"{folder / MANIFEST}: field 'actions'"
    shortest = spec.n_action_steps
    actions = require_int(field, manifest.get("actions", shortest), shortest, spec.horizon)
    if outputs != {ACTION: [*(["candidates"] if candidates else []), actions, spec.action_dim]}:
        raise FlowleapError(f"{other}: its outputs are {outputs}; export it again")


def _as_input(name: str, value: Any, dtype: np.dtype, known: ObsKey | None = None) -> np.ndarray:
    """Return `value` as a contiguous array of the graph's dtype; images must be uint8 already."""
    try:
        array = np.asarray(value)
        if array.dtype == dtype:
            return np.ascontiguousarray(array) if array.ndim else array
        if dtype == np.uint8 or array.dtype.kind not in "biuf":
            advice = input_advice(known, array.shape, str(array.dtype)) if known else ""
            raise ValueError(f"dtype {array.dtype} instead of {dtype}{advice}")
        return array.astype(dtype, order="C")
    except (TypeError, ValueError) as error:
        raise FlowleapError(f"{name}: {error}; give numbers as {dtype}") from error
