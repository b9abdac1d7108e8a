"""InfoNCE and the fit of the heads, on pairs whose alignment is known."""

from typing import Any

import pytest
import torch
from torch import Tensor

from encoders_core.errors import InputError, OptionError
from encoders_core.search.alignment import AlignmentHeads, FitOptions, fit_heads, info_nce


def pairs(count: int = 200) -> tuple[Tensor, Tensor, list[int]]:
    """Pictures and texts that see the same hidden cause through different lenses."""
    generator = torch.Generator().manual_seed(0)
    cause = torch.randn(count, 6, generator=generator)
    images = cause @ torch.randn(6, 20, generator=generator) + 0.1 * torch.randn(count, 20, generator=generator)
    texts = cause @ torch.randn(6, 12, generator=generator) + 0.1 * torch.randn(count, 12, generator=generator)
    return images, texts, list(range(count))


def test_info_nce_is_low_when_pairs_agree_and_log_n_when_nothing_does() -> None:
    groups = torch.arange(8)
    assert info_nce(100.0 * torch.eye(8), groups).item() < 1e-6
    assert info_nce(torch.zeros(8, 8), groups).item() == pytest.approx(torch.tensor(8.0).log().item())


def test_info_nce_does_not_hold_equal_captions_against_each_other() -> None:
    logits = 10.0 * torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert info_nce(logits, torch.tensor([0, 0, 1])).item() < info_nce(logits, torch.tensor([0, 1, 2])).item()


def test_fit_aligns_what_it_has_not_seen() -> None:
    heads = AlignmentHeads(20, 12, 16)
    report = fit_heads(heads, *pairs(), FitOptions(epochs=60, learning_rate=3e-3), show_progress_bar=False)
    assert report.held_out == 20
    assert report.recall_at_1_after >= report.recall_at_1_before + 0.4
    assert min(report.validation_loss) < 0.5 * report.validation_loss[0]
    assert len(report.train_loss) == report.epochs
    assert len(report.validation_loss) == report.epochs + 1


def test_fit_is_repeatable_and_the_seed_counts() -> None:
    def fitted(seed: int) -> Tensor:
        heads = AlignmentHeads(20, 12, 16)
        torch.randn(3)  # the global generator has no say
        fit_heads(heads, *pairs(), FitOptions(epochs=3, seed=seed), show_progress_bar=False)
        return heads.image.weight.detach()

    assert torch.equal(fitted(1), fitted(1))
    assert not torch.equal(fitted(1), fitted(2))


def test_fit_stops_early_and_keeps_the_best() -> None:
    images, texts, groups = pairs()
    noise = torch.randn(texts.shape, generator=torch.Generator().manual_seed(3))
    heads = AlignmentHeads(20, 12, 16)
    options = FitOptions(epochs=200, learning_rate=0.05, patience=3)
    report = fit_heads(heads, images, noise, groups, options, show_progress_bar=False)
    assert report.stopped_early
    assert report.epochs == report.best_epoch + 3
    assert report.validation_loss[report.best_epoch] == min(report.validation_loss)


def test_fit_that_helps_nothing_leaves_the_heads_as_they_were() -> None:
    heads = AlignmentHeads(16, 16, 16)
    same = torch.randn(60, 16, generator=torch.Generator().manual_seed(0))
    before = heads.image.weight.detach().clone()
    blurred = same + 0.3 * torch.randn(60, 16, generator=torch.Generator().manual_seed(1))
    options = FitOptions(epochs=5, learning_rate=5.0, patience=2, validation_share=0.5)
    assert fit_heads(heads, same, blurred, list(range(60)), options, show_progress_bar=False).best_epoch == 0
    assert torch.equal(heads.image.weight, before)


def test_few_pairs_are_all_trained_on() -> None:
    images, texts, groups = pairs(8)
    report = fit_heads(
        AlignmentHeads(20, 12, 16), images, texts, groups, FitOptions(epochs=20), show_progress_bar=False
    )
    assert report.held_out == 0
    assert report.validation_loss[-1] < report.validation_loss[0]


@pytest.mark.parametrize(
    ("options", "shown"),
    [({"epochs": 2}, 2), ({"epochs": 50, "patience": 1, "learning_rate": 10.0}, None)],
)
def test_epochs_and_patience_bound_the_fit(options: dict[str, Any], shown: int | None) -> None:
    report = fit_heads(AlignmentHeads(20, 12, 16), *pairs(), FitOptions(**options), show_progress_bar=False)
    assert report.epochs == shown if shown else report.epochs < 50


def test_progress_bar_goes_to_stderr_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for show in (True, False):
        fit_heads(AlignmentHeads(20, 12, 16), *pairs(), FitOptions(epochs=2), show_progress_bar=show)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("Fitting" in err) is show


@pytest.mark.parametrize(("dims", "dim"), [((12, 12), 12), ((12, 8), 16), ((8, 8), 16)])
def test_heads_start_without_changing_an_angle(dims: tuple[int, int], dim: int) -> None:
    heads, x = AlignmentHeads(*dims, dim), torch.randn(5, dims[0], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        torch.cosine_similarity(heads.image(x[:1]), heads.image(x)), torch.cosine_similarity(x[:1], x)
    )


def test_narrow_heads_of_equal_widths_start_alike() -> None:
    heads = AlignmentHeads(16, 16, 4, seed=1)
    assert torch.equal(heads.image.weight, heads.text.weight)
    assert not torch.equal(heads.image.weight, AlignmentHeads(16, 16, 4, seed=2).image.weight)


def test_one_caption_alone_cannot_be_contrasted() -> None:
    images, texts, _ = pairs(4)
    with pytest.raises(InputError, match="at least 2 pairs of different texts"):
        fit_heads(AlignmentHeads(20, 12, 16), images, texts, [0] * 4, FitOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected a positive number"),
        ({"patience": 0}, "patience: expected a positive number"),
        ({"batch_size": 1}, "a contrast needs at least 2 pairs"),
        ({"validation_share": 1.0}, "validation_share: expected 0 to below 1"),
        ({"learning_rate": 0.0}, "expected a positive learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay of at least 0"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        FitOptions(**options)
