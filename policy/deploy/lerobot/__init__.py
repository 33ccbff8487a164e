"""flowleap's policies in LeRobot: the policy type `flowleap`, found by `--policy.discover_packages_path=flowleap.lerobot`.

The modules `configuration_flowleap`, `modeling_flowleap` and `processor_flowleap` have the names by which lerobot looks for
them, and import it; `features` and `folder` do not.
"""
