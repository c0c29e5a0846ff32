"""How long a suspected member has to refute (Lifeguard, Dadgar et al. 2018, §IV-B: dogpile-aware suspicion).

One accuser may itself be slow, so a lone suspicion waits long. Each further accuser makes it likelier that the member
is really gone, and the time left shrinks with the logarithm of their number:

    timeout = max - (max - min) * log(confirmations + 1) / log(expected + 1),   never below min

`min` grows with the logarithm of the number of members, as the time does that a refutation takes to come round.
"""

from __future__ import annotations

import math

from meshnode.membership.settings import Settings


class Suspicion:
    """One suspected member, at one incarnation. Times are ticks."""

    __slots__ = ("_expected", "_max", "_min", "accusers", "incarnation", "started")

    def __init__(self, settings: Settings, *, members: int, incarnation: int, accuser: str, now: int) -> None:
        """`members` are all that are alive or suspect, this node and the suspect included."""
        self.incarnation = incarnation
        self.started = now
        self.accusers = {accuser}
        self._min, self._max = suspicion_ticks(settings, members)
        # Those who can confirm are all but the suspect and the first accuser.
        self._expected = max(0, min(settings.suspicion_multiplier - 2, members - 2))
        if settings.suspicion_max_factor <= 1:
            self._expected = 0

    def confirm(self, accuser: str) -> bool:
        """Count an accuser; returns whether it is a new one that is still worth telling others about."""
        if accuser in self.accusers or len(self.accusers) > self._expected:
            return False
        self.accusers.add(accuser)
        return True

    def deadline(self) -> int:
        """The tick at which the member counts as dead, if nothing changes."""
        confirmations = len(self.accusers) - 1
        if confirmations >= self._expected:
            return self.started + self._min
        share = math.log(confirmations + 1) / math.log(self._expected + 1)
        return self.started + max(self._min, round(self._max - (self._max - self._min) * share))


def suspicion_ticks(settings: Settings, members: int) -> tuple[int, int]:
    """The shortest and the longest time that a suspected member is given.

    memberlist's factor is max(1, log10 N). Ours is max(1/2, log10(N/2)): a small mesh learns of a death two seconds
    earlier. What pays for it: whoever hears a suspicion probes the suspect at once, and so tells it (see `swim`).
    """
    factor = max(0.5, math.log10(max(members, 2) / 2))
    shortest = settings.suspicion_multiplier * factor * settings.probe_interval_ticks
    return round(shortest), round(shortest * settings.suspicion_max_factor)
