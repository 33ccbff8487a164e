"""The mathematics: flow map, draws, objectives, samplers, derivatives."""
