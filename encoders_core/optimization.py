"""What an optimisation did: what was applied, what was not and why, what was measured. Nothing is ignored silently."""

from dataclasses import dataclass, field

from encoders_core.errors import OptionError


class NotAppliedError(OptionError):
    """Raised under `strict=True` when an option cannot take effect here. `reasons` by option."""

    def __init__(self, reasons: dict[str, str]) -> None:
        self.reasons = reasons
        told = "; ".join(f"{option}: {reason}" for option, reason in reasons.items())
        super().__init__(f"cannot be applied here: {told}")


@dataclass(kw_only=True)
class OptimizationReport:
    """By option, in a sentence each."""

    applied: dict[str, str] = field(default_factory=dict)
    not_applied: dict[str, str] = field(default_factory=dict)
    measured_out: set[str] = field(default_factory=set)
    """Options among `not_applied` that work here and were measured not to help, or less than another."""
    speedup: float | None = None
    """Time before over time after, medians of interleaved runs; None where nothing was measured."""
    fidelity: float | None = None
    """Lowest cosine between features before and after, over the batch that was measured."""

    def __str__(self) -> str:
        lines = [f"applied      {option}: {how}" for option, how in self.applied.items()]
        lines += [f"not applied  {option}: {why}" for option, why in self.not_applied.items()]
        if self.speedup is not None and self.fidelity is not None:
            lines.append(f"measured     {self.speedup:.2f} times as fast, cosine at least {self.fidelity:.5f}")
        return "\n".join(lines) or "nothing asked for"

    def refuse(self, *, strict: bool, choosing: bool = False) -> None:
        """Raise NotAppliedError when `strict` and something could not be applied; `choosing` lets go what did not help."""
        reasons = {
            option: why for option, why in self.not_applied.items() if not (choosing and option in self.measured_out)
        }
        if strict and reasons:
            raise NotAppliedError(reasons)


def precision_obstacle(device_type: str, dtype: str) -> str | None:
    """Why mixed precision in `dtype` ("float16", "bfloat16") makes no sense on such a device; None where it does."""
    if dtype == "float16" and device_type == "cpu":
        return (
            "CPUs have no float16 arithmetic worth using: it is emulated and slower than float32; use bfloat16 or none"
        )
    return None
