"""The bookkeeping of both ends against each other, over a channel that loses, restarts and repeats."""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streaming.frames import FrameSpec
from streaming.transport.credits import Credits
from streaming.transport.peers import Intake, Peers
from streaming.wire import NO_FRAME, FrameHeader, Hello, header_of
from tests.streaming.transport_gear import frame

LIMITS = {"front": 2, "file": 1}
SPEC = FrameSpec((1, 1))
cameras = st.sampled_from(sorted(LIMITS))


def test_pace_counts_from_the_last_frame_and_repeats_change_nothing() -> None:
    account = Credits()
    account.add("front")
    assert account.wait_ns("front", 0) == 0
    account.sent("front", 0, now_ns=1_000)
    account.acknowledged("front", 0, pace_us=5)
    assert [account.wait_ns("front", now) for now in (1_000, 4_000, 6_000, 9_000)] == [5_000, 2_000, 0, 0]
    account.sent("front", 1, now_ns=9_000)
    account.sent("front", 2, now_ns=14_000)
    assert account.wait_ns("front", 99_000) is None
    account.acknowledged("front", 0, pace_us=0)
    assert account.in_flight("front") == 2
    account.acknowledged("front", 2, pace_us=0)
    account.acknowledged("front", 1, pace_us=0)
    assert account.settled(["front"])


def test_void_gives_all_credits_back_and_forgets_the_pace() -> None:
    account = Credits()
    account.add("front")
    account.sent("front", 0, now_ns=0)
    account.acknowledged("front", 0, pace_us=1_000_000)
    account.sent("front", 1, now_ns=0)
    account.sent("front", 2, now_ns=0)
    account.void()
    assert account.wait_ns("front", 0) == 0
    assert not account.settled(["front"])  # the new encoder has not said that it knows of them


def test_acknowledgement_of_a_number_never_seen_is_of_a_past_incarnation() -> None:
    intake = Intake("front")
    intake.admit(header_of(frame("front", 0), epoch=1, now_ns=1))
    intake.acknowledge(1000, pace_us=0)
    assert (intake.acked_seq, len(intake.outstanding)) == (-1, 1)
    intake.acknowledge(0, pace_us=0)
    assert (intake.acked_seq, len(intake.outstanding)) == (0, 0)


class BothEnds(RuleBasedStateMachine):
    """A worker and an encoder with honest code at both ends; only the channel and the processes misbehave."""

    @initialize()
    def start(self) -> None:
        self.up: deque[FrameHeader | Hello] = deque()
        self.down: deque[tuple[int, int, str, int]] = deque()
        self.seq = dict.fromkeys(LIMITS, NO_FRAME)
        self.epoch, self.known_epoch, self.incarnation = 1, 0, 1
        self.peers = Peers("here")
        self.start_credits()
        self.start_worker_again()

    def start_credits(self) -> None:
        self.credits = Credits()
        for camera, limit in LIMITS.items():
            self.credits.add(camera, lossless=limit == 1)

    @rule()
    def start_worker_again(self) -> None:
        self.incarnation += 1
        self.up.clear()  # what the killed one had not handed over; what was read is read
        self.down.clear()
        self.known_epoch = 0
        self.start_credits()
        self.say_hello()

    @rule()
    def start_encoder_again(self) -> None:
        self.epoch += 1
        self.peers = Peers("here")
        self.up.clear()
        self.down.clear()
        self.say_hello()

    @rule()
    def break_connection(self) -> None:
        self.up.clear()
        self.down.clear()

    @rule()
    def say_hello(self) -> None:
        self.up.append(Hello("worker", self.incarnation, "0", "here", self.credits.last_seqs()))

    @rule(camera=cameras, skipped=st.integers(0, 3))
    def send_frame(self, camera: str, skipped: int) -> None:
        if self.known_epoch == 0 or self.credits.wait_ns(camera, 0) != 0:
            return
        self.seq[camera] += 1 + skipped
        self.up.append(header_of(frame(camera, self.seq[camera]), epoch=self.known_epoch, now_ns=1))
        self.credits.sent(camera, self.seq[camera], 0)

    @precondition(lambda self: self.up)
    @rule()
    def encoder_reads(self) -> None:
        message = self.up.popleft()
        if isinstance(message, Hello):
            self.peers.hello(b"worker", message, 0)
            self.down.append((self.epoch, 0, "", 0))
            self.repeat_acks()
        elif message.epoch == self.epoch:
            peer = self.peers.get(b"worker")
            assert peer is not None
            peer.intakes[message.camera].admit(message)  # raises if an honest worker ever broke a rule

    @rule()
    def repeat_acks(self) -> None:
        for peer in self.peers:
            for intake in peer.intakes.values():
                self.down.append((self.epoch, peer.hello.incarnation, intake.camera, intake.acked_seq))

    @rule(camera=cameras, how_many=st.integers(1, 2))
    def encoder_finishes(self, camera: str, how_many: int) -> None:
        owner = self.peers.owner(camera)
        if owner is not None and owner.intakes[camera].outstanding:
            intake = owner.intakes[camera]
            intake.acknowledge([*intake.outstanding][:how_many][-1], 0)
            self.down.append((self.epoch, owner.hello.incarnation, camera, intake.acked_seq))

    @precondition(lambda self: self.down)
    @rule()
    def worker_reads(self) -> None:
        epoch, incarnation, camera, up_to_seq = self.down.popleft()
        if not camera:
            if epoch != self.known_epoch:
                self.credits.void()
            self.known_epoch = epoch
        elif (epoch, incarnation) == (self.known_epoch, self.incarnation):
            self.credits.acknowledged(camera, up_to_seq, 0)

    @invariant()
    def in_flight_is_within_the_limit_at_both_ends(self) -> None:
        for camera, limit in LIMITS.items():
            assert self.credits.in_flight(camera) <= limit
            owner = self.peers.owner(camera)
            assert owner is None or len(owner.intakes[camera].outstanding) <= limit

    def teardown(self) -> None:
        """Whatever happened: once the channel works, all credits come back."""
        if not hasattr(self, "up"):
            return
        for _ in range(2):
            self.say_hello()
            while self.up:
                self.encoder_reads()
            for camera in LIMITS:
                self.encoder_finishes(camera, 2)
            self.repeat_acks()
            while self.down:
                self.worker_reads()
        assert self.credits.settled(LIMITS)


TestBothEnds = BothEnds.TestCase
TestBothEnds.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_intake_is_urgent_with_the_last_credit_a_pace_or_a_file() -> None:
    intake = Intake("front")
    intake.admit(header_of(frame("front", 0), epoch=1, now_ns=1))
    assert not intake.acknowledge(0, 0)
    intake.admit(header_of(frame("front", 1), epoch=1, now_ns=1))
    assert intake.acknowledge(1, 0)
    intake.told(5)
    intake.admit(header_of(frame("front", 2), epoch=1, now_ns=1))
    assert not intake.acknowledge(2, 0)
    assert intake.acknowledge(2, 1000)
    assert intake.acknowledge(2, 0), "that there is no pace any more is worth a word"
    whole = frame("front", 3)
    whole.lossless = True
    intake.told(6)
    intake.admit(header_of(whole, epoch=1, now_ns=1))
    assert intake.acknowledge(3, 0)


def acknowledged_at_once(intake: Intake, seq: int, sent_ns: int) -> bool:
    intake.admit(header_of(frame("front", seq), epoch=1, now_ns=sent_ns))
    urgent = intake.acknowledge(seq, 0)
    if urgent:
        intake.told(sent_ns + 1_000_000)
    return urgent


def test_intake_tells_a_camera_that_has_time_with_every_second_frame() -> None:
    intake = Intake("front")
    assert [acknowledged_at_once(intake, seq, 40_000_000 * (seq + 1)) for seq in range(6)] == 3 * [False, True]


def test_intake_tells_a_sender_that_waits_for_credits_at_once() -> None:
    intake = Intake("front")
    # Two frames, then none until it has been told: from its next frame on each is acknowledged when it comes.
    sent_ns = [100_000_000, 101_000_000, 104_000_000, 105_000_000, 130_000_000]
    assert [acknowledged_at_once(intake, seq, at_ns) for seq, at_ns in enumerate(sent_ns)] == [False, *4 * [True]]
