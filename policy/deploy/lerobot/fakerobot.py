"""A robot to try a policy on without hardware: `--robot.type=flowleap_fake`.

Its joints follow their commands with a lag; it counts which control steps got an action, and when. lerobot looks for
the class `FakeRobot` in a module of that name.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig


@RobotConfig.register_subclass("flowleap_fake")
@dataclass(kw_only=True)
class FakeRobotConfig(RobotConfig):
    """The fake robot.

    Args:
        joints: how many numbers `observation.state` has.
        actions: how many of them, the first ones, are commanded.
        start: where all of them begin.
        lag: share of the way to its command that a joint makes in a step.
        images: camera -> [height, width]; each frame shows the step it was taken at.
        log: a JSON file for what was counted, written at the end.
    """

    joints: int = 6
    actions: int = 6
    start: float = 0.0
    lag: float = 0.5
    images: dict[str, list[int]] = field(default_factory=dict)
    log: Path | None = None


class FakeRobot(Robot):
    """See `FakeRobotConfig`. A step begins when it is observed; it is served if an action comes before the next one."""

    config_class = FakeRobotConfig
    name = "flowleap_fake"

    def __init__(self, config: FakeRobotConfig) -> None:
        super().__init__(config)
        self.config = config
        self._state = np.full(config.joints, config.start)
        self._connected = False
        self.observed: list[float] = []
        self.commanded: list[float | None] = []
        self.commands: list[list[float]] = []

    @property
    def _names(self) -> list[str]:
        return [f"joint_{i}.pos" for i in range(self.config.joints)]

    @property
    def observation_features(self) -> dict[str, Any]:
        """Joints, and cameras with their shapes."""
        images = {name: (*size, 3) for name, size in self.config.images.items()}
        return {**dict.fromkeys(self._names, float), **images}

    @property
    def action_features(self) -> dict[str, Any]:
        """The commanded joints."""
        return dict.fromkeys(self._names[: self.config.actions], float)

    @property
    def cameras(self) -> dict[str, Any]:
        """The cameras' names; there is no device behind them."""
        return dict(self.config.images)

    @property
    def is_connected(self) -> bool:
        """Between `connect` and `disconnect`."""
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        """It always is."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Begin."""
        self._connected = True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_observation(self) -> dict[str, Any]:
        """Joints and images of a new step."""
        shade = len(self.observed) % 256
        self.observed.append(time.perf_counter())
        self.commanded.append(None)
        images = {name: np.full((*size, 3), shade, np.uint8) for name, size in self.config.images.items()}
        return {**dict(zip(self._names, self._state.tolist(), strict=True)), **images}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Move towards the command."""
        command = np.array([action[name] for name in self.action_features])
        if self.commanded[-1] is None:
            self.commanded[-1] = time.perf_counter()
        self.commands.append(command.tolist())
        moved = self._state[: self.config.actions]
        moved += self.config.lag * (command - moved)
        return action

    def disconnect(self) -> None:
        """End, and write the log."""
        self._connected = False
        if self.config.log is not None:
            # lerobot's first look, at where the robot stands, is no step.
            observed, commanded = self.observed[1:], self.commanded[1:]
            start = observed[0] if observed else 0.0
            log = {
                "observed_s": [round(t - start, 6) for t in observed],
                "commanded_s": [None if t is None else round(t - start, 6) for t in commanded],
                "commands": self.commands,
            }
            self.config.log.write_text(json.dumps(log) + "\n", encoding="utf-8")
