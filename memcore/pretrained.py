"""The memory configuration beside a model's weights: saved with them, found again when they are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from memcore import events
from memcore.config import MemoryConfig
from memcore.errors import ConfigError, UnsupportedModelError
from memcore.files import parse_json
from memcore.model_source import check_source

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONFIG_FIELD: Final = "memcore"
"""Field of a model's ``config.json`` that holds :meth:`memcore.MemoryConfig.to_dict`, and ignored without memcore."""

_HUB: Final = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def config_for(model: Any, **overrides: Any) -> MemoryConfig:
    """Return the configuration that a model was saved with, or else the default one.

    Args:
        model: a transformers model.
        **overrides: fields that take precedence.

    Raises:
        ConfigError: it cannot be used.
    """
    saved = getattr(model.config, CONFIG_FIELD, None)
    if saved is None:
        return MemoryConfig.from_value(**overrides)
    try:
        found = MemoryConfig.from_value({**saved, **overrides})
    except (ConfigError, TypeError) as error:
        MemoryConfig.from_value(**overrides)  # what is wrong with these alone is not said of the model's
        raise ConfigError(
            f"the memory configuration that the model was saved with cannot be used: {error}; pass another as config"
        ) from error
    events.MEMORY_CONFIGURED.log(config=str(found))
    return found


def from_pretrained(
    name: str | Path,
    config: MemoryConfig | Mapping[str, object] | str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **arguments: Any,
) -> PreTrainedModel:
    """Load a decoder and wrap it, with what ``save_pretrained`` of a wrapped model has saved if there is such.

    The configuration is a part of the model's ``config.json``: without memcore such a model loads as it always did.

    Args:
        name: a hub id or a folder.
        config: as in :func:`memcore.wrap`; None for the one that was saved with the model, or else the defaults.
        tokenizer: as in :func:`memcore.wrap`.
        **arguments: fields of :class:`~memcore.MemoryConfig` take precedence over ``config``; all others go to
            ``AutoModelForCausalLM.from_pretrained``, e.g. ``dtype="auto"`` or ``device_map="auto"``.

    Raises:
        ConfigError: the configuration cannot be used.
        UnsupportedModelError: there is no such folder, no adapter knows the model, or what memory has added to its
            weights cannot be read.
        OSError: transformers cannot find the model.
    """
    from transformers import AutoModelForCausalLM

    from memcore.adapter import wrap

    fields = {field.name for field in attrs.fields(MemoryConfig)}
    overrides = {field: arguments.pop(field) for field in fields & arguments.keys()}
    if config is not None:
        # Before the weights, which take their time.
        config, overrides = MemoryConfig.from_value(config, **overrides), {}
    if not Path(name).is_dir():  # what is in a folder is for transformers to say, which may be told of a subfolder
        check_source(str(name))
    load: Any = AutoModelForCausalLM.from_pretrained
    model, info = load(name, output_loading_info=True, **arguments)
    wrap(model, config, tokenizer=tokenizer, **overrides)
    hub: dict[str, Any] = {argument: arguments[argument] for argument in _HUB if argument in arguments}
    _load_what_memory_added(model, name, info["unexpected_keys"], hub)
    return model  # type: ignore[no-any-return]


def _load_what_memory_added(model: Any, name: str | Path, unexpected: Iterable[str], hub: dict[str, Any]) -> None:
    """Load the weights that only the wrapped model has."""
    wanted = set(unexpected) & set(model.state_dict())
    if wanted:
        model.load_state_dict(_read(name, wanted, hub), strict=False)


def _read(name: str | Path, wanted: set[str], hub: dict[str, Any]) -> dict[str, Tensor]:
    """Read some weights of a checkpoint in safetensors files, the only ones that memcore reads."""
    from safetensors import SafetensorError, safe_open
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file

    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    weights = {}
    try:
        if index is None:
            shards = dict.fromkeys(wanted, SAFE_WEIGHTS_NAME)
        else:
            shards = parse_json(Path(index).read_text(encoding="utf-8"))["weight_map"]
        for shard in sorted({shards[key] for key in wanted}):
            if Path(shard).name != shard:
                raise ValueError(f"the index names {shard!r}, which is no file beside it")
            with safe_open(cached_file(name, shard, **hub), framework="pt") as file:
                weights.update({key: file.get_tensor(key) for key in sorted(wanted) if shards[key] == shard})
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UnsupportedModelError(f"what memory added to the weights of {str(name)!r} is damaged: {error}") from error
    return weights
