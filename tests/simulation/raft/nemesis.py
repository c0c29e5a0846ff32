"""What goes wrong: one fault after another, drawn from the world's generator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus.raft.effects import Role
from tests.simulation.network import Faults

if TYPE_CHECKING:
    from tests.simulation.raft.host import Host
    from tests.simulation.raft.world import World


class Nemesis:
    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        self.is_over = False
        self._acts = [
            self.crash,
            self.crash,
            self.crash_leader,
            self.restart,
            self.restart,
            self.partition,
            self.partition,
            self.cut_one_way,
            self.cut_pair,
            self.heal,
            self.heal,
            self.degrade,
            self.pause,
            self.slow_disk,
            self.hang_disk,
            self.snapshot,
            self.transfer,
        ]
        if world.membership_churns:
            self._acts += [self.change_members] * 5
        if world.clocks_jump:
            self._acts += [self.jump] * 2
        cuts = {self.partition, self.cut_one_way, self.cut_pair}
        self._acts_on_one = [act for act in self._acts if act not in cuts]
        self._schedule()

    def _schedule(self) -> None:
        self.world.clock.call_later(self.rng.uniform(0.02, 0.25), self._act)

    def _act(self) -> None:
        if not self.is_over:
            act = self.rng.choice(self._acts if len(self.world.hosts) > 1 else self._acts_on_one)
            act()
            self.world.note("nemesis", act.__name__)
            self._schedule()

    def end(self) -> None:
        """Mend everything."""
        self.is_over = True
        self.world.effects_until_crash = None
        self.world.reply_loss = 0.0
        self.heal()
        for host in self.world.hosts.values():
            host.restart()
            host.resume()
            host.heal_disk()

    def _any(self) -> Host:
        return self.world.hosts[self.rng.choice(sorted(self.world.hosts))]

    def _leader(self) -> Host | None:
        leaders = [host for host in self.world.hosts.values() if host.is_up and host.core.role is Role.LEADER]
        return self.rng.choice(leaders) if leaders else None

    def crash(self) -> None:
        """At once, or between two effects some time soon."""
        host = self._any()
        if host.is_up and self.rng.random() < 0.3:
            host.crash()
            return
        self.world.effects_until_crash = self.rng.randrange(1, 60)

    def crash_leader(self) -> None:
        host = self._leader()
        if host is not None:
            host.crash()

    def restart(self) -> None:
        for host in self.world.hosts.values():
            if self.rng.random() < 0.7:
                host.restart()

    def partition(self) -> None:
        names = sorted(self.world.hosts)
        self.rng.shuffle(names)
        middle = self.rng.randrange(1, len(names))
        self.world.network.partition(set(names[:middle]), set(names[middle:]))

    def cut_one_way(self) -> None:
        source, target = self.rng.sample(sorted(self.world.hosts), 2)
        self.world.network.cut_one_way(source, target)

    def cut_pair(self) -> None:
        """A partial partition: two can't talk, both reach the others."""
        a, b = self.rng.sample(sorted(self.world.hosts), 2)
        self.world.network.cut_one_way(a, b)
        self.world.network.cut_one_way(b, a)

    def heal(self) -> None:
        self.world.network.heal()
        self.world.network.faults = Faults()

    def degrade(self) -> None:
        self.world.network.faults = Faults(
            loss=self.rng.choice((0.0, 0.05, 0.3)),
            duplication=self.rng.choice((0.0, 0.2)),
            reorder=self.rng.choice((0.0, 0.2)),
            reorder_delay=self.rng.choice((0.01, 0.3)),
        )

    def pause(self) -> None:
        host = self._any()
        if host.is_up and not host.is_paused:
            host.pause()
            self.world.clock.call_later(self.rng.uniform(0.05, 1.0), host.resume)

    def jump(self) -> None:
        self._any().jump(self.rng.choice((3, 12, 100, 100_000)))

    def slow_disk(self) -> None:
        self._any().sync_delay = (0.01, self.rng.choice((0.05, 0.3)))

    def hang_disk(self) -> None:
        host = self._any()
        host.hang_disk()
        self.world.clock.call_later(self.rng.uniform(0.1, 1.5), host.heal_disk)

    def snapshot(self) -> None:
        host = self._any()
        if host.is_up and not host.is_paused:
            host.take_snapshot()

    def transfer(self) -> None:
        host = self._leader()
        if host is not None and not host.is_paused:
            target = self.rng.choice(sorted(self.world.hosts))
            host.ask(lambda: host.core.transfer(target), [])

    def change_members(self) -> None:
        host = self._leader()
        if host is None or host.is_paused:
            return
        if len(self.world.hosts) < self.world.most_hosts and self.rng.random() < 0.5:
            self.world.add_host()
        names = sorted(self.world.hosts)
        self.rng.shuffle(names)
        count = self.rng.randrange(1, min(5, len(names)) + 1)
        learners = names[count : count + self.rng.randrange(3)]
        host.ask(lambda: host.core.change_configuration(names[:count], learners), [lambda *_: None])
