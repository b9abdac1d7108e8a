from hypothesis import given
from hypothesis import strategies as st

from workers.layout import plan_layout

CAMERAS = st.lists(st.text("abcdefgh", min_size=1, max_size=3), unique=True, max_size=12)


def test_layout_of_five_cameras_fills_workers_up_to_their_limit() -> None:
    layout = plan_layout(list("abcde"), encoders=2, cameras_per_worker=4)
    assert layout.capture == {"capture-0": ("a", "b", "c", "d"), "capture-1": ("e",)}
    assert layout.encoder_of == {"a": 0, "b": 1, "c": 0, "d": 1, "e": 0}


@given(CAMERAS, CAMERAS, st.integers(1, 4), st.integers(1, 5))
def test_layout_after_a_reload_moves_no_camera_that_stays(
    first: list[str], second: list[str], encoders: int, limit: int
) -> None:
    before = plan_layout(first, encoders=encoders, cameras_per_worker=limit)
    after = plan_layout(second, encoders=encoders, cameras_per_worker=limit, before=before)
    worker_of = {c: name for name, held in before.capture.items() for c in held}
    for name, held in after.capture.items():
        assert len(held) <= limit
        for camera in held:
            assert worker_of.get(camera, name) == name
    for camera in set(first) & set(second):
        assert after.encoder_of[camera] == before.encoder_of[camera]
    assert sorted(c for held in after.capture.values() for c in held) == sorted(second)
    assert set(after.encoder_of) == set(second)
