"""Ticks, pre-votes, votes, taking office (§5.2, §5.4.1; dissertation §4.2.3, §9.6)."""

from __future__ import annotations

from consensus.raft import membership, reads, replication, reserve
from consensus.raft import transfer as handover
from consensus.raft.durability import persist_hard_state, send
from consensus.raft.effects import Role
from consensus.raft.messages import NOOP, Entry, PreVote, PreVoteReply, TimeoutNow, Vote, VoteReply
from consensus.raft.roles import become_follower, is_ill, is_sticky, leave_office, may_campaign, reset_countdown
from consensus.raft.state import Leadership, State

RIVAL_TICKS = 3


def tick(state: State, elapsed: int) -> None:
    """`elapsed` ticks went by."""
    state.now += elapsed
    if state.leadership is not None:
        _tick_leader(state, state.leadership)
        return
    # However long a pause was, what waits in the inbox may be a heartbeat: it counts as what was agreed to.
    state.countdown -= min(elapsed, state.rest)
    if state.countdown <= 0:
        reset_countdown(state)
        if may_campaign(state):
            stand_first(state)
        else:
            become_follower(state, state.term, None)  # whoever led us, does so no more
    elif state.role is Role.PRE_CANDIDATE and (state.now - state.stood_at) % state.settings.retry_ticks == 0:
        _ask_pre_votes(state)  # who refused may have heard a leader a tick later than this node, or been its rival
    elif state.forwarded_reads and state.now % state.settings.retry_ticks == 0:
        reads.ask_again(state)


def rest(state: State) -> int:
    """How many ticks the node needs none, if nothing else happens to it."""
    leadership = state.leadership
    if leadership is not None:
        is_level = state.commit_index == state.log.last_index and leadership.announced_index >= state.commit_index
        is_idle = is_level and leadership.holding_since is None
        state.rest = leadership.heartbeat_at - state.now if is_idle else 1
    elif state.role is Role.FOLLOWER and not state.forwarded_reads:
        # No longer: of a countdown little goes by in a pause, and a lost question is soon asked again.
        state.rest = min(state.countdown - 1, state.settings.heartbeat_ticks)
    else:
        state.rest = 1
    state.rest = max(1, state.rest)
    return state.rest


def _tick_leader(state: State, leadership: Leadership) -> None:
    def contact_at(node: str) -> int:
        return state.now if node == state.id else leadership.progress[node].contact_at

    since = leadership.holding_since
    if since is not None and state.now - since >= state.settings.reserve_ticks:
        reserve.spread(state)
    if is_ill(state):
        handover.resign(state)
    elif state.now - state.configuration.reached(contact_at) > state.settings.election_timeout_ticks:
        become_follower(state, state.term, None)  # check-quorum: others may have a leader by now
    elif state.now >= leadership.heartbeat_at:
        handover.maybe_hand_over(state)
        reserve.relax(state)
        replication.heartbeat(state)
    elif state.commit_index == state.log.last_index:
        replication.announce(state, state.commit_index)


def stand_first(state: State) -> None:
    """Ask whether an election could be won, before disturbing anyone with a new term."""
    leave_office(state)
    state.role, state.stood_at = Role.PRE_CANDIDATE, state.now
    state.votes.add(state.id)
    _ask_pre_votes(state)
    _count(state)


def stand(state: State, *, transfer: bool = False) -> None:
    """Begin a new term and ask for votes; the own vote counts when it is durable."""
    leave_office(state)
    state.role = Role.CANDIDATE
    persist_hard_state(state, state.term + 1, state.id)
    reset_countdown(state)
    _ask(state, Vote(state.term, state.log.last_index, state.log.last_term, transfer))


def own_vote_durable(state: State) -> None:
    """After a write: a candidate may count its own vote if that can't be forgotten any more."""
    if state.role is Role.CANDIDATE and state.durability.hard_state_is_durable and state.id not in state.votes:
        state.votes.add(state.id)
        _count(state)


def receive_pre_vote(state: State, source: str, message: PreVote) -> None:
    """Yes, if this node would vote so and hears no leader. Promises nothing and changes nothing."""
    granted = (
        message.term > state.term
        and not is_sticky(state)
        and state.log.is_up_to_date(message.last_index, message.last_term)
        and not goes_first(state, source, message)
    )
    send(state, source, PreVoteReply(message.term if granted else state.term, granted))


def goes_first(state: State, source: str, message: PreVote) -> bool:
    """Whether this node asks for pre-votes, too, just now, and has the better claim: else both would be promised the
    votes, and then split them. Only for a moment, for it may be this one that can't win."""
    is_rival = state.role is Role.PRE_CANDIDATE and state.now - state.stood_at < RIVAL_TICKS
    log = state.log
    return is_rival and (log.last_term, log.last_index, state.id) > (message.last_term, message.last_index, source)


def receive_vote(state: State, source: str, message: Vote) -> None:
    """One vote a term, first come, first served, and only for a log that lacks nothing of ours (§5.2, §5.4.1)."""
    granted = (
        message.term == state.term
        and state.vote in (None, source)
        and state.log.is_up_to_date(message.last_index, message.last_term)
    )
    if granted and state.vote is None:
        persist_hard_state(state, state.term, source)
        reset_countdown(state)
    send(state, source, VoteReply(state.term, granted))


def receive_pre_vote_reply(state: State, source: str, message: PreVoteReply) -> None:
    """Count it, if it answers the question asked last."""
    if state.role is Role.PRE_CANDIDATE and message.term == state.term + (1 if message.granted else 0):
        (state.votes if message.granted else state.refusals).add(source)
        _count(state)


def receive_vote_reply(state: State, source: str, message: VoteReply) -> None:
    """Count it, if it is of this term's election. Only deciders of the configuration count."""
    if state.role is Role.CANDIDATE and message.term == state.term:
        (state.votes if message.granted else state.refusals).add(source)
        _count(state)


def receive_timeout_now(state: State, source: str, message: TimeoutNow) -> None:
    """The leader wants this node to follow it in office: no pre-vote, for the leader is known to be alive."""
    if message.term == state.term and source == state.leader and may_campaign(state):
        stand(state, transfer=True)


def _ask_pre_votes(state: State) -> None:
    state.refusals.clear()
    _ask(state, PreVote(state.term + 1, state.log.last_index, state.log.last_term))


def _ask(state: State, message: PreVote | Vote) -> None:
    for node in sorted(state.configuration.deciders - {state.id}):
        send(state, node, message)


def _count(state: State) -> None:
    if state.configuration.agreed(state.votes):
        if state.role is Role.PRE_CANDIDATE:
            stand(state)
        else:
            _take_office(state)
    elif state.configuration.agreed(state.refusals):
        become_follower(state, state.term, None)


def _take_office(state: State) -> None:
    """Lead: with an entry of its own, so that what earlier terms left can be committed (§5.4.2, §8)."""
    leave_office(state)
    state.role, state.leader = Role.LEADER, state.id
    state.leadership = Leadership({}, first_index=state.log.last_index + 1)
    membership.watch_members(state)
    state.leadership.heartbeat_at = state.now + state.settings.heartbeat_ticks
    replication.append(state, [Entry(state.term, b"", NOOP)])
