"""An engine as the node knows it: where it is, and how it is spoken to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from blip.errors import ConfigError

#: Engines that are told apart, by what they call the owner of their models.
DIALECTS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llama.cpp",
    "library": "ollama",
    "mesh": "blip",
}


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that serves models over OpenAI's API.

    ``url`` is its base URL without a slash at the end, ``api_key_env`` names the environment
    variable of its key ("" for none), ``timeout`` is in seconds without a byte. ``dialect`` is a
    value of :data:`DIALECTS`, "" while the engine is only known to speak the API.
    """

    name: str
    url: str
    api_key_env: str = ""
    timeout: float = 120.0
    dialect: str = ""

    def headers(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the headers that every request carries.

        Raises :class:`~blip.errors.ConfigError` if the key's variable is not set.
        """
        if not self.api_key_env:
            return {}
        key = environment.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"upstream '{self.name}': the environment variable {self.api_key_env} is not set "
                "where the node runs",
                param=f"upstreams.{self.name}.api_key_env",
            )
        return {"Authorization": f"Bearer {key}"}
