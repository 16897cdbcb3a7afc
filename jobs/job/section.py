"""A table of the job file: what all sections have in common. Knows no particular section."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from maskfleet.jobs.job.values import accepted, example, phrase


class Section(BaseModel):
    """A table of the job file. Frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads true as 1, in lists too.
        several = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(each, bool) for each in several):
            field = cls.model_fields[str(info.field_name)]
            if "true or false" not in accepted(field):
                raise ValueError(f"must be {phrase(field)}, such as {example(field)}")
        return value
