"""A cluster that is not there: hosts as network namespaces of this machine, a slow network, slow storage."""

from launch.study.emulation.hosts import Hosts
from launch.study.emulation.storage import Storage

__all__ = ["Hosts", "Storage"]
