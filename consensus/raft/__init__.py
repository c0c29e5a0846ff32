"""Raft as a pure core. `node` tells the protocol on one page; the driver needs no more than what is named here."""

from consensus.raft.configuration import Configuration
from consensus.raft.messages import HardState, Snapshot
from consensus.raft.node import Raft
from consensus.raft.settings import Settings
from consensus.raft.state import Stored, founding

__all__ = ["Configuration", "HardState", "Raft", "Settings", "Snapshot", "Stored", "founding"]
