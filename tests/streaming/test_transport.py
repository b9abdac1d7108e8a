import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zmq

from streaming import wire
from streaming.errors import TransportError
from streaming.frames import FrameSpec, Since
from streaming.records import FeatureRecord, StateRecord, WorkerStats
from streaming.transport import (
    CamerasChanged,
    CaptureLink,
    EncoderInbox,
    Event,
    FrameArrived,
    Readable,
    RecordReceiver,
    RecordSender,
    WorkerStarted,
    WorkerVanished,
)
from streaming.transport.records import RECEIVE_HWM
from streaming.wire import Tail, ToPublisher
from tests.streaming.transport_gear import PATIENCE_S, SMALL, EncoderThread, Ledger, frame, pattern, record_of, until


@pytest.fixture
def context() -> Iterator[zmq.SyncContext]:
    with zmq.Context() as shared:
        yield shared


@pytest.fixture(params=["ipc", "tcp", "inproc"])
def link_options(request: pytest.FixtureRequest, tmp_path: Path, context: zmq.SyncContext) -> dict[str, object]:
    """The same code over each transport; only inproc needs the shared context."""
    if request.param == "ipc":
        return {"endpoint": f"ipc://{tmp_path}/encoder"}
    if request.param == "tcp":
        return {"endpoint": "tcp://127.0.0.1:*"}
    return {"endpoint": "inproc://encoder", "context": context}


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/encoder"


async def send(link: CaptureLink, camera: str, seqs: range) -> None:
    for seq in seqs:
        async with asyncio.timeout(PATIENCE_S):
            await link.credit(camera)
        assert link.send_frame(frame(camera, seq)) is None


async def test_frames_arrive_whole_and_in_order_over_each_transport(link_options: dict[str, object]) -> None:
    with EncoderThread(**link_options) as encoder:  # type: ignore[arg-type]
        options = link_options | {"endpoint": encoder.inbox.endpoint}
        async with CaptureLink(worker="capture-0", cameras=["front"], **options) as link:  # type: ignore[arg-type]
            assert await link.ready() == SMALL
            await send(link, "front", range(50))
            await asyncio.wait_for(link.settled(), PATIENCE_S)
        await until(lambda: encoder.of(WorkerVanished))
    arrived = encoder.of(FrameArrived)
    assert [event.frame.frame_seq for event in arrived] == list(range(50))
    for event in arrived:
        np.testing.assert_array_equal(event.frame.pixels, pattern(event.frame.frame_seq))
        assert event.frame.pixels.flags.writeable
        assert 0 <= event.transfer_us < PATIENCE_S * 1e6
    assert [type(event) for event in encoder.events if not isinstance(event, FrameArrived)] == [
        WorkerStarted,
        WorkerVanished,
    ]
    assert encoder.of(WorkerVanished)[0].why == "bye"


async def test_pixels_may_be_overwritten_as_soon_as_send_frame_returns(endpoint: str) -> None:
    # R28: one buffer for all frames, filled anew right after each send, at a size where pyzmq would not copy by itself.
    size_hw = (224, 224)
    buffer = np.empty((*size_hw, 3), np.uint8)
    with EncoderThread(endpoint, spec=FrameSpec(size_hw)) as encoder:
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await link.ready()
            for seq in range(200):
                await asyncio.wait_for(link.credit("front"), PATIENCE_S)
                buffer[:] = pattern(seq, size_hw)
                assert link.send_frame(frame("front", seq, buffer)) is None
                buffer[:] = 255
            await asyncio.wait_for(link.settled(), PATIENCE_S)
    arrived = encoder.of(FrameArrived)
    assert len(arrived) == 200
    for event in arrived:
        np.testing.assert_array_equal(event.frame.pixels, pattern(event.frame.frame_seq, size_hw))


async def test_no_more_than_two_frames_of_a_camera_are_in_flight(endpoint: str) -> None:
    held: dict[str, int] = {}

    def keep(inbox: EncoderInbox, event: Event) -> None:
        if isinstance(event, FrameArrived):
            held[event.frame.camera] = inbox.outstanding(event.frame.camera)

    with EncoderThread(endpoint, keep) as encoder:
        async with CaptureLink(endpoint, "capture-0", ["front", "file"], lossless=["file"]) as link:
            await link.ready()
            for camera, limit in (("front", 2), ("file", 1)):
                await send(link, camera, range(limit))
                assert link.blocked(camera) == "superseded"
                assert link.send_frame(frame(camera, 9)) == "superseded"
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(link.credit(camera), 0.4)  # longer than the repeated acknowledgements
            await until(lambda: held == {"front": 2, "file": 1})
    assert encoder.inbox.bad_messages == 0


async def test_acknowledgement_frees_a_credit_and_carries_the_pace(endpoint: str) -> None:
    pace_us = 150_000

    def slow_down(inbox: EncoderInbox, event: Event) -> None:
        if isinstance(event, FrameArrived):
            inbox.ack(event.frame.camera, event.frame.frame_seq, pace_us)

    with EncoderThread(endpoint, slow_down):
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await link.ready()
            sent_ns = []
            for seq in range(5):
                await asyncio.wait_for(link.credit("front"), PATIENCE_S)
                sent_ns.append(time.monotonic_ns())
                assert link.send_frame(frame("front", seq)) is None
                await asyncio.wait_for(link.settled(), PATIENCE_S)
                assert link.blocked("front") in {"paced", None}  # None: this machine was slower than the pace
    intervals_us = np.diff(sent_ns) / 1000
    assert (intervals_us >= pace_us).all()


async def test_a_frame_with_a_credit_left_is_acknowledged_within_the_repetition(endpoint: str) -> None:
    with EncoderThread(endpoint):
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await link.ready()
            await send(link, "front", [0])
            assert link.blocked("front") is None  # the other credit: nothing need be said yet
            await asyncio.wait_for(link.settled(), PATIENCE_S)


async def test_threads_send_on_one_link_at_once_and_wait_for_credits_on_the_loop(endpoint: str) -> None:
    cameras, frames = ["a", "b", "c", "d"], 300

    def read(link: CaptureLink, camera: str) -> None:
        for seq in range(frames):
            while link.send_frame(frame(camera, seq)) is not None:
                time.sleep(0.0002)

    with EncoderThread(endpoint) as encoder:
        async with CaptureLink(endpoint, "capture-0", [*cameras, "slow"]) as link:
            await link.ready()
            readers = [asyncio.create_task(asyncio.to_thread(read, link, camera)) for camera in cameras]
            for seq in range(100):
                await asyncio.wait_for(link.credit("slow"), PATIENCE_S)
                assert link.send_frame(frame("slow", seq)) is None
                assert link.send_record(Tail("slow", seq, Since()))
            await asyncio.wait_for(asyncio.gather(*readers), PATIENCE_S)
            await asyncio.wait_for(link.settled(), PATIENCE_S)
    arrived = [event.frame for event in encoder.of(FrameArrived)]
    for camera in cameras:
        assert [one.frame_seq for one in arrived if one.camera == camera] == list(range(frames))
    assert all((one.pixels == pattern(one.frame_seq)).all() for one in arrived)
    assert encoder.inbox.bad_messages == 0


async def test_link_that_has_been_left_takes_nothing_more(endpoint: str) -> None:
    with EncoderThread(endpoint):
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await link.ready()
        assert await asyncio.to_thread(link.send_frame, frame("front", 0)) == "encoder_away"
        assert not link.send_record(Tail("front", 0, Since()))


async def test_pace_changes_without_a_frame_to_acknowledge(endpoint: str) -> None:
    with EncoderThread(endpoint, _pace_then_free):
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await link.ready()
            await send(link, "front", range(1))
            await until(lambda: link.blocked("front") == "paced")
            assert link.send_record(WorkerStats("capture-0", 1, 0.0, 0.0))
            await asyncio.wait_for(link.credit("front"), PATIENCE_S)  # an hour's pace is taken back


def _pace_then_free(inbox: EncoderInbox, event: Event) -> None:
    if isinstance(event, FrameArrived):
        inbox.ack(event.frame.camera, event.frame.frame_seq, wire.MAX_PACE_US)
    if isinstance(event, WorkerStats):
        inbox.ack("front", wire.NO_FRAME, 0)


async def test_waiting_for_a_credit_can_be_cancelled_and_uses_none(endpoint: str) -> None:
    with EncoderThread(endpoint):
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await link.ready()
            for _ in range(20):
                waiting = asyncio.create_task(link.credit("front"))
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            await send(link, "front", range(3))
            await asyncio.wait_for(link.settled(), PATIENCE_S)


async def test_without_an_encoder_frames_are_refused_as_encoder_away(endpoint: str) -> None:
    async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
        assert link.connected is False
        assert link.blocked("front") == "encoder_away"
        assert link.send_frame(frame("front", 0)) == "encoder_away"
        assert not link.send_record(StateRecord("front", "connecting", None, "", 0))
        waiting = asyncio.create_task(link.credit("front"))
        with EncoderThread(endpoint):  # started after the worker
            await asyncio.wait_for(waiting, PATIENCE_S)
            assert link.blocked("front") is None


async def test_frozen_encoder_counts_as_away_and_comes_back_in_the_same_epoch(endpoint: str) -> None:
    with EncoderThread(endpoint) as encoder:
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await link.ready()
            epoch = link.epoch
            encoder.pause()
            await until(lambda: not link.connected)
            assert link.send_frame(frame("front", 0)) == "encoder_away"
            waiting = asyncio.create_task(link.credit("front"))
            encoder.resume()
            await asyncio.wait_for(waiting, PATIENCE_S)
            assert link.epoch == epoch
            await send(link, "front", range(1, 3))
            await asyncio.wait_for(link.settled(), PATIENCE_S)
    # The encoder was away, not the worker: its Hellos waited in the socket.
    assert [event.why for event in encoder.of(WorkerVanished)] in ([], ["bye"])
    assert len(encoder.of(WorkerStarted)) == 1


async def test_words_of_a_worker_arrive_in_order_with_its_frames(endpoint: str) -> None:
    state = StateRecord("front", "streaming", None, "", 5)
    with EncoderThread(endpoint) as encoder:
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await link.ready()
            assert link.send_record(state)
            await send(link, "front", range(1))
            assert link.send_record(Tail("front", 4, Since(1, {"stopped": 3})))
            await asyncio.wait_for(link.settled(), PATIENCE_S)
    seen = [event for event in encoder.events if not isinstance(event, WorkerStarted | WorkerVanished)]
    assert [type(event) for event in seen] == [StateRecord, FrameArrived, Tail]
    assert seen[0] == state
    assert seen[2] == Tail("front", 4, Since(1, {"stopped": 3}))


async def test_cameras_come_and_go_on_a_living_link(endpoint: str) -> None:
    def acknowledge_back(inbox: EncoderInbox, event: Event) -> None:
        if isinstance(event, FrameArrived) and event.frame.camera == "back":
            inbox.ack("back", event.frame.frame_seq)

    with EncoderThread(endpoint, acknowledge_back) as encoder:
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await link.ready()
            link.add_camera("back")
            await send(link, "front", range(2))
            await send(link, "back", range(3))
            waiting = asyncio.create_task(link.credit("front"))
            await asyncio.sleep(0)
            link.remove_camera("front")
            with pytest.raises(KeyError, match="'front' is not declared"):
                await asyncio.wait_for(waiting, PATIENCE_S)
            await until(lambda: len(encoder.of(CamerasChanged)) == 2)
    assert encoder.of(CamerasChanged) == [
        CamerasChanged("capture-0", ("back",), ()),
        CamerasChanged("capture-0", (), ("front",)),
    ]
    assert encoder.inbox.bad_messages == 0


async def test_camera_that_turns_out_to_be_a_file_may_have_one_frame_in_flight(endpoint: str) -> None:
    with EncoderThread(endpoint, lambda *_: None):
        async with CaptureLink(endpoint, "capture-0", ["clip"]) as link:
            await link.ready()
            link.add_camera("clip", lossless=True)
            await send(link, "clip", range(1))
            assert link.blocked("clip") == "superseded"


async def test_link_reads_on_when_its_user_fails_on_a_welcome(endpoint: str) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def fail(_: wire.Welcome) -> None:
        raise RuntimeError("the user's own fault")

    with EncoderThread(endpoint):
        async with CaptureLink(endpoint, "capture-0", ["front"], on_welcome=fail) as link:
            await link.ready()
            await send(link, "front", range(5))
            await asyncio.wait_for(link.settled(), PATIENCE_S)
    assert [type(error) for error in reported] == [RuntimeError]


async def test_message_beyond_any_limit_ends_its_connection_alone(endpoint: str, context: zmq.SyncContext) -> None:
    with EncoderThread(endpoint) as encoder:
        evil = raw_dealer(context, endpoint, b"evil")
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await link.ready()
            evil.send(b"x" * (wire.MAX_MESSAGE_BYTES + 1))  # libzmq hangs up before it reads it
            await send(link, "front", range(20))
            await asyncio.wait_for(link.settled(), PATIENCE_S)
        evil.close()
    assert encoder.inbox.bad_messages == 0


async def test_frame_of_a_size_that_the_encoder_does_not_want_is_not_sent(endpoint: str) -> None:
    with EncoderThread(endpoint):
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await link.ready()
            assert link.send_frame(frame("front", 0, pattern(0, (32, 32)))) == "encoder_away"
            await send(link, "front", range(1))
            with pytest.raises(ValueError, match="expected frame_seq above 0, got 0"):
                link.send_frame(frame("front", 0))


async def test_new_incarnation_of_a_worker_replaces_the_old_one(endpoint: str) -> None:
    with EncoderThread(endpoint, lambda *_: None) as encoder:  # acknowledges nothing
        async with CaptureLink(endpoint, "capture-0", ["front"]) as old:
            await old.ready()
            await send(old, "front", range(2))
            await until(lambda: len(encoder.of(FrameArrived)) == 2)
            # Its credits are its own: the frames of the old one do not count.
            async with CaptureLink(endpoint, "capture-0", ["front"]) as new:
                await new.ready()
                await send(new, "front", range(2, 4))
                await until(lambda: len(encoder.of(FrameArrived)) == 4)
    assert encoder.inbox.bad_messages == 0
    whys = [event.why for event in encoder.of(WorkerVanished)]
    assert whys[0] == "replaced"
    assert len({event.incarnation for event in encoder.of(WorkerStarted)}) == 2


async def test_camera_belongs_to_the_worker_that_declared_it_last(endpoint: str) -> None:
    with EncoderThread(endpoint) as encoder:
        async with (
            CaptureLink(endpoint, "capture-0", ["front"]) as first,
            CaptureLink(endpoint, "capture-1") as second,
        ):
            await first.ready()
            await second.ready()
            second.add_camera("front")
            await send(second, "front", range(3))
            await asyncio.wait_for(second.settled(), PATIENCE_S)
            assert first.send_frame(frame("front", 50)) is None
            await until(lambda: encoder.inbox.bad_by_peer == {"capture-0": 1})
    assert [event.worker for event in encoder.of(FrameArrived)] == ["capture-1"] * 3


def raw_dealer(context: zmq.SyncContext, endpoint: str, name: bytes) -> zmq.SyncSocket:
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.IDENTITY, name)
    dealer.connect(endpoint)
    return dealer


def hello(name: str, cameras: dict[str, int]) -> bytes:
    return wire.encode(wire.Hello(name, 77, "0", "elsewhere", cameras))


def test_bad_messages_are_counted_by_peer_and_harm_nobody(endpoint: str, context: zmq.SyncContext) -> None:
    with EncoderInbox(endpoint, SMALL, "model") as inbox:
        evil, good = raw_dealer(context, endpoint, b"evil"), raw_dealer(context, endpoint, b"good")
        good.send(hello("good", {"front": -1}))
        events = _poll_until(inbox, lambda events: len(events) == 1)
        evil.send(hello("good", {"front": -1}))  # another's name
        evil.send_multipart([hello("evil", {"back": -1}), b"more"])
        evil.send(hello("evil", {"back": -1}))
        evil.send(b"")
        evil.send(b"cv\x01garbage")
        evil.send(b"x" * 5_000_000)
        evil.send_multipart([b"a"] * 50)
        whole = pattern(0).tobytes()
        wrong: list[list[bytes]] = [[], [b"short"], [whole + b"!"], [whole, b"third"]]
        for seq, pixels in enumerate(wrong):
            evil.send_multipart([_header(inbox, "back", seq, (16, 16)), *pixels])
        evil.send_multipart([_header(inbox, "back", 4, (8, 8)), b"\0" * 192])
        evil.send_multipart([_header(inbox, "back", 4, (16, 16)), pattern(4).data])  # not after 4
        evil.send_multipart([_header(inbox, "front", 5, (16, 16)), pattern(5).data])  # another's camera
        good.send_multipart([_header(inbox, "front", 0, (16, 16)), pattern(0).data])
        events = _poll_until(inbox, lambda events: inbox.bad_messages >= 13 and any(_is_frame(e) for e in events))
        for dealer in (evil, good):
            dealer.close()
    assert inbox.bad_messages == 13
    assert inbox.bad_by_peer == Counter(evil=13)
    arrived = [event for event in events if isinstance(event, FrameArrived)]
    assert [(event.worker, event.frame.frame_seq) for event in arrived] == [("good", 0)]
    # Where the header could be read the frame is accounted for, its credit goes back, and the chain goes on.
    refused = [Tail("back", seq, Since(2, {"bad_message": 1})) for seq in range(5)]
    assert [event for event in events if isinstance(event, Tail)] == refused


def _header(inbox: EncoderInbox, camera: str, seq: int, size_hw: tuple[int, int]) -> bytes:
    sent = frame(camera, seq, pattern(seq, size_hw), Since(2))
    return wire.encode(wire.header_of(sent, epoch=inbox.epoch, now_ns=time.monotonic_ns()))


def _is_frame(event: Event) -> bool:
    return isinstance(event, FrameArrived)


def _poll_until(inbox: EncoderInbox, done: Callable[[list[Event]], object]) -> list[Event]:
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE_S
    while not done(events):
        assert time.monotonic() < deadline, (events, inbox.bad_by_peer)
        events += inbox.poll(50)
    return events


def test_frame_beyond_the_credit_is_refused(endpoint: str, context: zmq.SyncContext) -> None:
    with EncoderInbox(endpoint, SMALL, "model") as inbox:
        greedy = raw_dealer(context, endpoint, b"greedy")
        greedy.send(hello("greedy", {"front": -1}))
        for seq in range(5):
            greedy.send_multipart([_header(inbox, "front", seq, (16, 16)), pattern(seq).data])
        events = _poll_until(inbox, lambda _: inbox.bad_messages == 3)
        greedy.close()
    assert [event.frame.frame_seq for event in events if isinstance(event, FrameArrived)] == [0, 1]


def test_frame_for_the_encoder_before_becomes_a_tail(endpoint: str, context: zmq.SyncContext) -> None:
    with EncoderInbox(endpoint, SMALL, "model") as inbox:
        late = raw_dealer(context, endpoint, b"late")
        sent = frame("front", 7, since=Since(1))
        stale = wire.encode(wire.header_of(sent, epoch=inbox.epoch + 1, now_ns=time.monotonic_ns()))
        late.send_multipart([stale, sent.pixels.data])  # before the Hello
        late.send(hello("late", {"front": 7}))
        late.send_multipart([_header(inbox, "front", 9, (16, 16)), pattern(9).data])
        events = _poll_until(inbox, lambda events: any(_is_frame(event) for event in events))
        late.close()
    assert events[0] == Tail("front", 7, Since(1, {"worker_lost": 1}))
    assert (inbox.stale_frames, inbox.bad_messages) == (1, 0)


def test_frames_lost_with_a_connection_give_their_credits_back(endpoint: str, context: zmq.SyncContext) -> None:
    with EncoderInbox(endpoint, SMALL, "model") as inbox:
        worker = raw_dealer(context, endpoint, b"worker")
        worker.send(hello("worker", {"front": -1, "back": -1}))
        worker.send_multipart([_header(inbox, "front", 0, (16, 16)), pattern(0).data])
        # 1 of front, 0 and 1 of back never came.
        worker.send(hello("worker", {"front": 1, "back": 1}))
        _poll_until(inbox, lambda events: any(_is_frame(event) for event in events))
        acks = _acks(inbox, worker)
        assert acks == {"front": -1, "back": 1}  # 0 of front is still with the encoder
        inbox.ack("front", 0)
        assert _acks(inbox, worker) == {"front": 1, "back": 1}
        worker.close()


def _acks(inbox: EncoderInbox, worker: zmq.SyncSocket) -> dict[str, int]:
    """What the repeated acknowledgements say."""
    time.sleep(0.3)
    inbox.poll(0)
    newest = {}
    while worker.poll(200):
        message = wire.decode_to_capture(worker.recv())
        if isinstance(message, wire.Ack):
            newest[message.camera] = message.up_to_seq
    return newest


def test_worker_that_says_nothing_for_3_s_is_reported_once(endpoint: str, context: zmq.SyncContext) -> None:
    with EncoderInbox(endpoint, SMALL, "model") as inbox:
        worker = raw_dealer(context, endpoint, b"worker")
        worker.send(hello("worker", {"front": -1}))
        events = _poll_until(inbox, lambda events: len(events) == 2)
        assert events[1] == WorkerVanished("worker", 77, ("front",), "silent")
        worker.send(hello("worker", {"front": -1}))
        events = _poll_until(inbox, bool)
        assert events == [WorkerStarted("worker", 77, ("front",), "0", same_host=False)]
        worker.close()


def test_poll_also_wakes_for_a_watched_descriptor_and_times_out_without_one(endpoint: str) -> None:
    reading, writing = os.pipe()
    with EncoderInbox(endpoint, SMALL, "model") as inbox:
        inbox.watch(reading)
        started = time.monotonic()
        assert inbox.poll(600) == []
        assert time.monotonic() - started >= 0.6
        os.write(writing, b"!")
        assert inbox.poll(PATIENCE_S * 1000) == [Readable(reading)]
        inbox.unwatch(reading)
        assert inbox.poll(0) == []
    os.close(reading)
    os.close(writing)


async def test_age_of_a_frame_from_another_host_is_not_shorter_than_it_was(endpoint: str) -> None:
    with EncoderThread(endpoint) as encoder:
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            link._host = "another machine"
            await link.ready()
            await until(lambda: link._echo_ns)
            await asyncio.sleep(1.2)  # the Hello with an echo: a round trip is known
            true_ns = []
            for seq in range(20):
                await asyncio.wait_for(link.credit("front"), PATIENCE_S)
                sent = frame("front", seq)
                sent.arrived_ns -= 30_000_000  # 30 ms ago
                true_ns.append(sent.arrived_ns)
                assert link.send_frame(sent) is None
                await asyncio.sleep(0.02)
            await asyncio.wait_for(link.settled(), PATIENCE_S)
    assert not encoder.of(WorkerStarted)[0].same_host
    for event, arrived_ns in zip(encoder.of(FrameArrived), true_ns, strict=True):
        # Both ends are here, so the truth is known: rebased to within the shortest round trip, which is short here.
        assert abs(event.frame.arrived_ns - arrived_ns) < 1e9
        assert event.frame.arrived_ns - arrived_ns < 10_000_000
        assert event.transfer_us < PATIENCE_S * 1e6


async def test_bad_bytes_from_an_encoder_are_counted_and_harm_nothing(endpoint: str, context: zmq.SyncContext) -> None:
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.bind(endpoint)
    async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
        await until(lambda: router.poll(0))
        identity = router.recv_multipart()[0]
        for parts in ([b""], [b"cv\x01\xff"], [b"a", b"b"], [hello("capture-0", {})], [b"z" * 100_000]):
            router.send_multipart([identity, *parts])
        await until(lambda: link.bad_messages == 5)
        router.send_multipart([identity, wire.encode(wire.Welcome(9, SMALL, "m", 1))])
        assert await asyncio.wait_for(link.ready(), PATIENCE_S) == SMALL
        # Acknowledgements of another epoch, incarnation or camera mean nothing.
        assert link.send_frame(frame("front", 0)) is None
        for epoch, incarnation, camera in ((8, link.incarnation, "front"), (9, 1, "front"), (9, link.incarnation, "x")):
            router.send_multipart([identity, wire.encode(wire.Ack(epoch, incarnation, camera, 5, 0, 1))])
        router.send_multipart([identity, b"last"])
        await until(lambda: link.bad_messages == 6)
        assert link._credits.in_flight("front") == 1
    router.close()


async def test_second_encoder_on_a_path_is_refused_and_the_first_lives_on(endpoint: str) -> None:
    with EncoderThread(endpoint):
        with pytest.raises(
            TransportError, match=r"cannot bind ipc://.*: a running process has it; stop that one first"
        ):
            EncoderInbox(endpoint, SMALL, "model").__enter__()
        async with CaptureLink(endpoint, "capture-0", ["front"]) as link:
            await asyncio.wait_for(link.ready(), PATIENCE_S)


def test_socket_file_is_for_its_owner_alone(endpoint: str) -> None:
    with EncoderInbox(endpoint, SMALL, "model"):
        assert Path(endpoint.removeprefix("ipc://")).stat().st_mode & 0o777 == 0o600


async def test_records_reach_the_publisher_over_each_transport(link_options: dict[str, object]) -> None:
    async with RecordReceiver(**link_options) as receiver:  # type: ignore[arg-type]
        options = link_options | {"endpoint": receiver.endpoint}
        with RecordSender(worker="encoder-0", **options) as sender:  # type: ignore[arg-type]
            ledger = Ledger()
            for seq in range(300):
                while not sender.send(record_of(frame("front", seq))):  # not connected yet, or full for the moment
                    await asyncio.sleep(0.001)
                    while (record := receiver.receive_nowait()) is not None:
                        ledger.book_record(record)
            while ledger.last.get("front") != 299:
                ledger.book_record(await asyncio.wait_for(receiver.receive(), PATIENCE_S))
    assert (ledger.frames, ledger.lost, receiver.bad_messages) == (300, 0, 0)


async def test_sender_keeps_the_account_when_the_publisher_is_away_or_behind(endpoint: str) -> None:
    with RecordSender(endpoint, "encoder-0") as sender:
        assert not sender.send(record_of(frame("front", 0)))
        async with RecordReceiver(endpoint) as receiver:
            await until(lambda: sender.send(Tail("front", 0, Since(1))))
            taken = 1
            while sender.send(record_of(frame("front", taken))):  # nobody reads
                taken += 1
                assert taken < 100_000
            for _ in range(taken):
                await asyncio.wait_for(receiver.receive(), PATIENCE_S)
            assert receiver.receive_nowait() is None


@pytest.mark.parametrize("dim", [1, 4096])
async def test_last_records_before_a_stop_are_not_lost(endpoint: str, dim: int) -> None:
    # As fast as they go, and then an immediate stop: many are still in the sender, and nobody has read any.
    vector = np.zeros(dim, np.float32).tobytes()
    sent: list[int] = []

    def fill_and_stop() -> None:
        with RecordSender(endpoint, "encoder-0") as sender:
            while len(sent) < RECEIVE_HWM:
                record = record_of(frame("front", len(sent)))
                record.vector, record.dim = vector, dim
                if sender.send(record):
                    sent.append(record.frame_seq)

    async with RecordReceiver(endpoint) as receiver:
        await asyncio.to_thread(fill_and_stop)
        for seq in sent:
            record = await asyncio.wait_for(receiver.receive(), PATIENCE_S)
            assert isinstance(record, FeatureRecord)
            assert record.frame_seq == seq


async def test_bad_records_are_counted_by_sender(endpoint: str, context: zmq.SyncContext) -> None:
    async with RecordReceiver(endpoint) as receiver:
        evil = context.socket(zmq.PUSH)
        evil.setsockopt(zmq.LINGER, 0)
        evil.connect(endpoint)
        for parts in ([b"one part"], [b"evil", b"cv\x01junk"], [b"evil", b""], [b"evil", b"a", b"b"]):
            evil.send_multipart(parts)
        evil.send_multipart([b"evil", wire.encode(Tail("front", 1, Since(2)))])
        record = await asyncio.wait_for(receiver.receive(), PATIENCE_S)
        evil.close()
    assert isinstance(record, Tail)
    assert receiver.bad_messages == 4
    assert receiver.bad_by_peer == {"one part": 1, "evil": 3}


async def test_records_are_delivered_until_their_taker_fails(endpoint: str, context: zmq.SyncContext) -> None:
    taken: list[int] = []

    def take(record: ToPublisher) -> None:
        assert isinstance(record, Tail)
        taken.append(record.up_to_seq)
        if record.up_to_seq == 3:
            raise ValueError("three")

    async with RecordReceiver(endpoint) as receiver:
        with RecordSender(endpoint, "encoder-0") as sender:
            delivery = asyncio.create_task(receiver.deliver(take))
            await until(lambda: sender.send(Tail("front", 0, Since())))
            with context.socket(zmq.PUSH) as stranger:
                stranger.connect(endpoint)
                stranger.send(b"nothing of ours")
            for seq in (1, 2, 3):
                sender.send(Tail("front", seq, Since()))
            with pytest.raises(ValueError, match="three"):
                await asyncio.wait_for(delivery, PATIENCE_S)
            assert taken == [0, 1, 2, 3]
            sender.send(Tail("front", 4, Since()))
            record = await asyncio.wait_for(receiver.receive(), PATIENCE_S)
            assert isinstance(record, Tail)
            assert record.up_to_seq == 4
            await until(lambda: receiver.receive_nowait() is None and receiver.bad_messages == 1)


async def test_receiver_lets_other_tasks_run_while_there_is_always_more(endpoint: str) -> None:
    async with RecordReceiver(endpoint) as receiver:
        with RecordSender(endpoint, "encoder-0") as sender:
            await until(lambda: sender.send(Tail("front", 0, Since(1))))
            ran = asyncio.Event()
            for _ in range(200):
                sender.send(Tail("front", 0, Since(1)))
                await receiver.receive()
                asyncio.get_running_loop().call_soon(ran.set)
            assert ran.is_set()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("udp://127.0.0.1:1", "expected an endpoint of ipc://, tcp:// or inproc://"),
        ("/tmp/socket", "expected an endpoint of ipc://"),
        ("tcp://10.0.0.5:5555", "expected CURVE keys for tcp://10.0.0.5:5555, got none"),
        ("tcp://*:5555", "or use 127.0.0.1"),
        ("tcp://[::]:5555", "expected CURVE keys"),
        ("ipc://@abstract", "expected ipc:// with an absolute path"),
        ("ipc://relative/socket", "expected ipc:// with an absolute path"),
        (f"ipc:///tmp/{'x' * 103}", "expected a socket path of at most 107 bytes, got 108"),
        ("ipc:///nonexistent/encoder", "cannot bind ipc:///nonexistent/encoder: No such file or directory"),
        ("tcp://127.0.0.1:99999", "expected tcp://HOST:PORT with a port up to 65535"),
        ("tcp://127.0.0.1", "expected tcp://HOST:PORT"),
        ("tcp://192.0.2.1;127.0.0.1:5555", "expected CURVE keys"),
        ("tcp://no-such-interface:5555", "expected CURVE keys"),
    ],
)
def test_endpoint_that_cannot_be_used_is_refused_with_a_sentence(wrong: str, said: str) -> None:
    with pytest.raises(TransportError) as caught, EncoderInbox(wrong, SMALL, "model"):
        pass
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "front\n", "../x"])
def test_names_that_cannot_travel_are_refused_at_the_start(endpoint: str, name: str) -> None:
    with pytest.raises(TransportError, match="expected a worker name"):
        CaptureLink(endpoint, name)
    with pytest.raises(TransportError, match="expected a camera id"):
        CaptureLink(endpoint, "capture-0", [name])
    with pytest.raises(TransportError, match="expected a worker name"):
        RecordSender(endpoint, name)
