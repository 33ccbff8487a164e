"""Registers flowleap's policy type and its fake robot with lerobot, which imports this module by its name."""

from flowleap.lerobot.configuration_flowleap import FlowleapConfig
from flowleap.lerobot.fakerobot import FakeRobot, FakeRobotConfig
from flowleap.lerobot.modeling_flowleap import FlowleapPolicy
from flowleap.lerobot.processor_flowleap import make_flowleap_pre_post_processors

__all__ = [
    "FakeRobot",
    "FakeRobotConfig",
    "FlowleapConfig",
    "FlowleapPolicy",
    "make_flowleap_pre_post_processors",
]
