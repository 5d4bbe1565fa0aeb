"""From a run spec to the files that start it: on this machine, on several nodes, under Slurm."""

from cptplan.launch.write import TARGETS, LaunchFiles, SlurmOptions, check_target, write_launch

__all__ = ["TARGETS", "LaunchFiles", "SlurmOptions", "check_target", "write_launch"]
