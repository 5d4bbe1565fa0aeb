"""From a run spec to the files that start it: here, on clusters, in clouds, and as recipes for other trainers."""

from cptplan.launch.options import TargetOptions, parse_options
from cptplan.launch.write import TARGETS, LaunchFiles, check_target, write_launch

__all__ = ["TARGETS", "LaunchFiles", "TargetOptions", "check_target", "parse_options", "write_launch"]
