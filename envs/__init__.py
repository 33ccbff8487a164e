"""Where a policy is tried: tasks, experts and the rollout evaluator. Knows gymnasium, not torch.

    task = make_task("probe/slalom")
    actor = load_actor("runs/slalom")
    print(summary(rollout(task, actor.act, actor.spec, seeds=range(100)), task)["success"])

Importing it loads neither torch nor a simulator; `flowleap.envs.collect` and `flowleap.envs.task_data`, which know
stores of episodes, are imported by their own names.
"""

from flowleap.envs.actors import LoadedActor, load_actor, policy_actor
from flowleap.envs.registry import list_tasks, make_task, register_task
from flowleap.envs.rendering import save_video
from flowleap.envs.report import format_line, summary
from flowleap.envs.rollout import Actor, Episode, Rollout, record_episode, rollout
from flowleap.envs.task import Expert, Observation, Recording, Scoring, Task

__all__ = [
    "Actor",
    "Episode",
    "Expert",
    "LoadedActor",
    "Observation",
    "Recording",
    "Rollout",
    "Scoring",
    "Task",
    "format_line",
    "list_tasks",
    "load_actor",
    "make_task",
    "policy_actor",
    "record_episode",
    "register_task",
    "rollout",
    "save_video",
    "summary",
]
