"""What goes wrong: one fault after another, drawn from the world's generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from consensus.raft.effects import Role
from tests.simulation.network import Faults

if TYPE_CHECKING:
    from tests.simulation.raft.host import Host
    from tests.simulation.raft.world import Aim, World


class Nemesis:
    """Each seed has its own mixture of faults and its own pace, so that some live through one kind again and again
    (Groce et al., "Swarm Testing", 2012)."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = rng = world.rng
        self.is_over = False
        acts: list[Callable[[], None]] = [
            self.crash,
            self.crash_leader,
            self.bounce_leader,
            self.restart,
            self.degrade,
            self.pause,
            self.pause_leader,
            self.slow_disk,
            self.hang_disk,
            self.snapshot,
            self.transfer,
        ]
        if len(world.hosts) > 1:
            acts += [
                self.partition,
                self.cut_one_way,
                self.cut_pair,
                self.cut_leader,
                self.cut_follower,
                self.isolate_leader,
                self.heal,
            ]
        if world.membership_churns:
            acts += [self.change_members, self.change_members_and_cut]
        if world.clocks_jump:
            acts += [self.jump]
        self._acts = acts
        self._weights = [rng.choice((0, 1, 1, 4)) for _ in acts]
        # What is broken is mended at times, or nothing would go on.
        for mending in (self.restart, self.heal):
            if mending in acts:
                self._weights[acts.index(mending)] = rng.choice((2, 5))
        if world.lease_reads and self.cut_follower in acts:
            for act in (self.cut_follower, self.isolate_leader, self.heal):
                self._weights[acts.index(act)] += rng.choice((0, 8))
        self._pace = rng.choice((0.05, 0.15, 0.3))
        self._hunts_leaders = rng.random() < 0.3
        self._take(world.aim)
        self._schedule()

    def _take(self, aim: Aim) -> None:
        """What a test wants goes before what was drawn."""
        if aim.acts:
            self._weights = [aim.acts.get(act.__name__, 0) for act in self._acts]
        if aim.pace_s is not None:
            self._pace = aim.pace_s
        if aim.hunts_leaders is not None:
            self._hunts_leaders = aim.hunts_leaders

    def _schedule(self) -> None:
        self.world.clock.call_later(self.rng.uniform(0.01, self._pace), self._act)

    def _act(self) -> None:
        if not self.is_over:
            (act,) = self.rng.choices(self._acts, self._weights)
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

    def bounce_leader(self) -> None:
        """Crash the leader, and let it be back before the others have noticed."""
        host = self._leader()
        if host is not None:
            self._hunt(host)

    def took_office(self, host: Host) -> None:
        """Some worlds let no leader finish what it begins, as in figure 8 of the paper."""
        if not self._hunts_leaders or self.is_over:
            return
        dice, epoch = self.rng.random(), host.epoch
        if dice < 0.3:
            self.world.clock.call_later(
                self.rng.uniform(0.001, 0.02), lambda: self._hunt(host) if host.epoch == epoch else None
            )
        elif dice < 0.8 and len(self.world.hosts) > 1:
            # Alone before its first entry has reached anyone; the one isolated before it is let back.
            self.world.network.heal()
            self.world.network.partition({host.name}, self.world.hosts.keys() - {host.name})

    def _hunt(self, host: Host) -> None:
        host.crash()
        self.world.clock.call_later(self.rng.uniform(0.001, 0.4), host.restart)

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

    def cut_leader(self) -> None:
        """The leader keeps some of its followers."""
        host = self._leader()
        if host is not None:
            for name in sorted(self.world.hosts):
                if name != host.name and self.rng.random() < 0.6:
                    self.world.network.cut_one_way(host.name, name)
                    self.world.network.cut_one_way(name, host.name)

    def cut_follower(self) -> None:
        """One follower loses the leader, and not the others: it will stand against a leader that is well."""
        host = self._leader()
        others = sorted(self.world.hosts.keys() - {host.name}) if host else []
        if host is not None and others:
            name = self.rng.choice(others)
            self.world.network.cut_one_way(host.name, name)
            self.world.network.cut_one_way(name, host.name)

    def isolate_leader(self) -> None:
        host = self._leader()
        if host is not None:
            self.world.network.partition({host.name}, self.world.hosts.keys() - {host.name})

    def heal(self) -> None:
        self.world.network.heal()
        self.world.network.faults = Faults()

    def degrade(self) -> None:
        self.world.network.faults = Faults(
            loss=self.rng.choice((0.0, 0.05, 0.3)),
            duplication=self.rng.choice((0.0, 0.2, 0.5)),
            reorder=self.rng.choice((0.0, 0.2, 0.5)),
            reorder_delay=self.rng.choice((0.01, 0.05, 0.4)),
        )

    def pause(self) -> None:
        host = self._any()
        if host.is_up and not host.is_paused:
            host.pause()
            self.world.clock.call_later(self.rng.uniform(0.05, 1.0), host.resume)

    def pause_leader(self) -> None:
        host = self._leader()
        if host is not None and not host.is_paused:
            host.pause()
            self.world.clock.call_later(self.rng.uniform(0.1, 0.6), host.resume)

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

    def change_members_and_cut(self) -> None:
        """A change that some learn of and others do not."""
        self.change_members()
        if len(self.world.hosts) > 1:
            self.partition()
