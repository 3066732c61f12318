"""Short digests of a model and of a tokenizer, by which a session knows those it was made with."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import torch

from memcore.errors import UnsupportedInputError
from memcore.options import describe
from memcore.pretrained import CONFIG_FIELD

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLE: Final = 16
"""Values looked at in each weight."""

_VOLATILE: Final = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    CONFIG_FIELD,
)
"""Fields of a model's configuration that change with the way it is loaded or wrapped, and not what it computes."""


def model_fingerprint(model: PreTrainedModel) -> str:
    """Return 16 hexadecimal digits that tell this model, in this precision, from others.

    They depend on the configuration and, of every weight, on its name, shape, dtype and a sample of its values. So a
    fine-tuned model differs from the one it came from, unless training left every value sampled as it was.
    """
    digest = hashlib.sha256()
    config = {name: value for name, value in model.config.to_dict().items() if name not in _VOLATILE}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            digest.update(f"{name} {list(weight.shape)} {weight.dtype}".encode())
            if weight.numel() and weight.device.type != "meta":
                places = torch.arange(_SAMPLE, device=weight.device) * (weight.numel() - 1) // (_SAMPLE - 1)
                digest.update(weight.detach().flatten()[places].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return 16 hexadecimal digits that tell this tokenizer from others that would cut or number a text differently.

    Raises:
        UnsupportedInputError: it is no tokenizer.
    """
    if not hasattr(tokenizer, "get_vocab"):
        raise UnsupportedInputError(
            f"expected the tokenizer that AutoTokenizer.from_pretrained(name) loads, got {describe(tokenizer)}"
        )
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        description = json.dumps(sorted(tokenizer.get_vocab().items()))
    else:
        # As it is: to parse a large vocabulary takes seconds. Before the tokens that were added stand padding and
        # truncation, the settings of the latest call.
        whole = backend.to_str()
        description = whole[max(0, whole.find('"added_tokens"')) :]
    special = json.dumps(sorted(map(str, tokenizer.all_special_tokens)))
    return hashlib.sha256(f"{description} {special}".encode()).hexdigest()[:16]
