"""What all modules of an autoencoder share: diffusers' saving and loading, and configurations that are checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from diffusers import ConfigMixin, ModelMixin


class Component(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not typed
    """A module with `save_pretrained`, `from_pretrained` and a config.json of its constructor's arguments."""

    config_name = "config.json"

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Build an untrained module from the values of a config.json; TypeError where they are not its own.

        diffusers' `from_config` takes what it knows and warns of the rest: of a file that somebody else may have
        written, that is too little.
        """
        return cls(**{name: value for name, value in fields.items() if not name.startswith("_")})
