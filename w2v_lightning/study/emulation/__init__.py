"""Emulated cluster: hosts as network namespaces of this machine, a slow network, slow storage."""

from w2v_lightning.study.emulation.hosts import Hosts
from w2v_lightning.study.emulation.storage import Storage

__all__ = ["Hosts", "Storage"]
