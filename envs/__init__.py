"""Where a policy is tried: tasks, experts and the rollout evaluator. Knows gymnasium, not torch."""
