"""flowleap's policies in LeRobot: the policy type `flowleap`, for `--policy.discover_packages_path=flowleap.lerobot`.

The modules `configuration_flowleap`, `modeling_flowleap`, `processor_flowleap` and `fakerobot` have the names by which
lerobot looks for them, and import it; the others do without.
"""
