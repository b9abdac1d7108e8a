"""What can be set about a MedicalEncoder, in the words of `create_specialized`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, get_args

from encoders_core.options import Schema, check_options

NormalizeMethod = Literal["z_score", "min_max", "none"]
NoiseReduction = Literal["bilateral_filter"]

MEDICAL_OPTIONS: Final[Schema] = {
    "preprocessing": {
        "normalize_method": get_args(NormalizeMethod),
        "window_level_adjustment": bool,
        "noise_reduction": (None, *get_args(NoiseReduction)),
    },
    "architecture": {
        "attention_to_detail": bool,
        "multi_scale_features": bool,
        "region_of_interest_detection": bool,
    },
    "output": {"preserve_spatial_info": bool, "confidence_estimation": bool},
}
"""What `create_specialized("medical_imaging", config)` knows."""


@dataclass(frozen=True, kw_only=True)
class MedicalSettings:
    """The options, flat; `MedicalEncoder` says what each does."""

    normalize_method: NormalizeMethod = "z_score"
    window_level_adjustment: bool = True
    noise_reduction: NoiseReduction | None = None
    attention_to_detail: bool = False
    multi_scale_features: bool = False
    region_of_interest_detection: bool = False
    preserve_spatial_info: bool = False
    confidence_estimation: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Nested options -> settings; what is not named has its default. Raises OptionError naming the valid ones."""
        options = check_options(config, MEDICAL_OPTIONS, "medical imaging")
        return cls(**{key: value for section in options.values() for key, value in section.items()})

    def to_config(self) -> dict[str, dict[str, Any]]:
        """The nested options again, all of them."""
        flat = dataclasses.asdict(self)
        return {section: {key: flat[key] for key in keys} for section, keys in MEDICAL_OPTIONS.items()}
