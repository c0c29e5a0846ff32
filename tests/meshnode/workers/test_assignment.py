from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshnode.workers.assignment import SLOTS_FOR_ONE_AHEAD, Assignment
from meshnode.workers.protocol import MAX_ATTEMPTS


def with_seats(*slots: int) -> Assignment:
    assignment = Assignment()
    for number, count in enumerate(slots):
        assignment.seat(f"w{number}", count)
    return assignment


def add(assignment: Assignment, *jobs: int) -> list[tuple[str, int]]:
    for job in jobs:
        assignment.add(job)
    return assignment.assign()


def test_jobs_go_to_the_freest_worker_in_order() -> None:
    assignment = with_seats(2, 2)
    assert add(assignment, 1, 2, 3) == [("w0", 1), ("w1", 2), ("w0", 3)]
    assert (assignment.slots, assignment.running, assignment.queued) == (4, 3, 0)


def test_what_finds_no_slot_waits_until_one_is_free() -> None:
    assignment = with_seats(1)
    assert add(assignment, 1, 2) == [("w0", 1)]
    assert assignment.queued == 1
    assignment.free(1)
    assert assignment.assign() == [("w0", 2)]


def test_a_closed_worker_keeps_what_it_holds_and_gets_no_more() -> None:
    assignment = with_seats(2)
    add(assignment, 1)
    assignment.close("w0")
    assert add(assignment, 2) == []
    assert assignment.holder(1) == "w0"
    assert assignment.slots == 0


def test_jobs_of_a_lost_worker_run_alone_and_before_others() -> None:
    assignment = with_seats(2)
    add(assignment, 1, 2, 3)
    assert assignment.unseat("w0") == []
    assignment.seat("w1", 2)
    assert assignment.assign() == [("w1", 1)], "a suspect, alone"
    assignment.free(1)
    assert assignment.assign() == [("w1", 2)]
    assignment.free(2)
    assert assignment.assign() == [("w1", 3)]


def test_an_innocent_job_of_a_lost_worker_is_no_suspect() -> None:
    assignment = with_seats(2)
    add(assignment, 1, 2)
    assignment.unseat("w0", frozenset({1}))
    assignment.seat("w1", 1)
    assignment.seat("w2", 1)
    assert assignment.assign() == [("w1", 2), ("w2", 1)]
    assert assignment.losses(1) == 0
    assert assignment.losses(2) == 1


def test_a_job_that_loses_too_many_workers_is_given_up() -> None:
    assignment = Assignment()
    assignment.add(1)
    for attempt in range(MAX_ATTEMPTS):
        assignment.seat(f"w{attempt}", 4)
        assert assignment.assign() == [(f"w{attempt}", 1)]
        lost = assignment.unseat(f"w{attempt}")
    assert lost == [1]
    assert assignment.queued == 0


def test_a_worker_is_emptied_for_a_suspect_while_the_others_go_on() -> None:
    assignment = with_seats(2, 2)
    add(assignment, 1, 2, 3, 4)
    assignment.seat("w2", 1)
    add(assignment, 5)
    assignment.unseat("w2")
    add(assignment, 6)
    assert assignment.suspects
    assignment.free(1)  # of w0, which makes room
    assignment.free(2)  # of w1, which doesn't
    assert assignment.assign() == [("w1", 6)]
    assignment.free(3)
    assert assignment.assign() == [("w0", 5)]


def test_a_cancelled_suspect_gives_its_room_back() -> None:
    assignment = with_seats(2, 1)
    add(assignment, 1, 2, 3)
    assignment.unseat("w1")
    add(assignment, 4)
    assert assignment.seats["w0"].reserved
    lost = next(iter(assignment.suspects))
    assignment.free(lost)
    assert assignment.assign() == []
    assignment.free(next(iter(assignment.seats["w0"].held)))
    assert assignment.assign() == [("w0", 4)]


def test_a_worker_of_many_slots_is_given_jobs_ahead_that_it_begins_in_order() -> None:
    assignment = with_seats(8, 1)
    assert [job for _, job in add(assignment, *range(1, 14))] == list(range(1, 12))
    assert list(assignment.seats["w0"].ahead) == [10, 11], "a quarter of its slots; of a single slot none"
    assert (assignment.running, assignment.queued) == (9, 4)
    assert (assignment.runs(9), assignment.runs(10), assignment.holder(10)) == (True, False, "w0")
    assert assignment.free(1) == 10
    assert assignment.runs(10)
    assert assignment.assign() == [("w0", 12)]
    assert assignment.free(11) is None, "cancelled before it began"
    assert assignment.free(2) == 12


def test_free_slots_go_before_room_ahead() -> None:
    assignment = with_seats(4, 4)
    given = add(assignment, *range(1, 9))
    assert sorted(name for name, _ in given) == ["w0"] * 4 + ["w1"] * 4
    assert not assignment.seats["w0"].ahead


def test_what_a_lost_worker_had_not_begun_is_no_suspect() -> None:
    assignment = with_seats(4)
    add(assignment, 1, 2, 3, 4, 5, 6)
    assert list(assignment.seats["w0"].ahead) == [5]
    assignment.unseat("w0")
    assert list(assignment.waiting) == [5, 6], "before what came later"
    assert assignment.losses(5) == 0
    assert list(assignment.suspects) == [1, 2, 3, 4]


STEPS = ["add", "free", "unseat", "seat", "close", "cancel"]


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7)), max_size=80))
def test_a_job_is_in_one_place_and_a_suspect_alone(steps: list[tuple[str, int]]) -> None:
    assignment = Assignment()
    jobs, seats, ended = 0, 0, set()
    for what, which in steps:
        held = sorted(job for seat in assignment.seats.values() for job in (*seat.held, *seat.ahead))
        names = sorted(assignment.seats)
        if what == "add":
            jobs += 1
            assignment.add(jobs)
        elif what == "seat" and len(names) < 4:
            seats += 1
            assignment.seat(f"w{seats}", (1, 2, 4, 9)[which % 4])
        elif what == "free" and held:
            job = held[which % len(held)]
            assignment.free(job)
            ended.add(job)
        elif what == "cancel" and assignment.waiting:
            job = list(assignment.waiting)[which % len(assignment.waiting)]
            assignment.free(job)
            ended.add(job)
        elif what == "unseat" and names:
            ended |= set(assignment.unseat(names[which % len(names)]))
        elif what == "close" and names:
            assignment.close(names[which % len(names)])
        assignment.assign()
        held_now = [job for seat in assignment.seats.values() for job in (*seat.held, *seat.ahead)]
        placed = [*assignment.waiting, *assignment.suspects, *held_now]
        assert assignment.running + assignment.queued == len(placed)
        assert sorted(placed) == sorted(set(range(1, jobs + 1)) - ended)
        for seat in assignment.seats.values():
            assert len(seat.held) <= seat.slots
            assert not seat.ahead or len(seat.held) == seat.slots
            assert len(seat.ahead) <= seat.slots // SLOTS_FOR_ONE_AHEAD
            if any(assignment.losses(job) for job in seat.held):
                assert len(seat.held) == 1
    # Nothing is forgotten: with an idle worker whatever waits is given out in the end.
    for name in list(assignment.seats):
        ended |= set(assignment.unseat(name))
    assignment.seat("last", 2)
    while given_out := assignment.assign():
        for _, job in given_out:
            assignment.free(job)
            ended.add(job)
    assert ended == set(range(1, jobs + 1))
