# %% [markdown]
# # Fine-tuning as in MemLong
#
# One memory layer stores, layers above it read, and only those are trained, so that what is stored stays true. This
# trains a model on texts for a few steps, measures the loss on a text that it was not trained on, and puts the trained
# weights back into a fresh model. The settings are small enough for a CPU: they show how it is done, and teach little.

# %%
import os
import tempfile
from pathlib import Path
from typing import Any

import memcore
from memcore.demo.text import first_tokens, language_reference
from memcore.demo.weights import demo_model_path
from memcore.model_source import load_model
from memcore.training.configuration import DataConfig, StageConfig, TrainingConfig
from memcore.training.run import train
from memcore.training.trainable import TrainingPlan

MODEL = os.environ.get("MODEL") or str(demo_model_path())  # hub id or folder
TOKENS = int(os.environ.get("TOKENS", "6000"))
STEPS = int(os.environ.get("STEPS", "6"))
MEMORY_LAYER = int(os.environ.get("MEMORY_LAYER", "5"))  # of Gemma 3 270M, one that attends to everything
READING_LAYERS = tuple(int(layer) for layer in os.environ.get("READING_LAYERS", "11,17").split(","))

# %% [markdown]
# ## Texts
#
# Long documents, whole: what is far back must be of use for what comes. Here it is the Python language reference, its
# last third apart for evaluation. Use books, code bases or whatever the model is to read later.

# %%
folder = Path(tempfile.mkdtemp())
_, tokenizer = load_model(MODEL)
text = first_tokens(language_reference(), TOKENS, tokenizer)
(folder / "training.txt").write_text(text[: 2 * len(text) // 3], encoding="utf-8")
(folder / "evaluation.txt").write_text(text[2 * len(text) // 3 :], encoding="utf-8")

# %% [markdown]
# ## Training
#
# The same as a file for `memcore train`. The gates start without effect, so the first step is the model as it was.

# %%
config = TrainingConfig(
    model=MODEL,
    documents=(str(folder / "training.txt"),),
    evaluation=(str(folder / "evaluation.txt"),),
    output=folder / "trained",
    memory=memcore.MemoryConfig(
        window=256, chunk_size=32, top_k=4, memory_layer=MEMORY_LAYER, layers=READING_LAYERS, gate=True
    ),
    data=DataConfig(segment=256),
    stages=(StageConfig(name="memlong", steps=STEPS, learning_rate=3e-4, log_every=1, plan=TrainingPlan(lora_rank=8)),),
)
result = train(config, note=print)
(stage,) = result.stages
print(f"loss on the text held out: {stage.before:.4f} before, {stage.after:.4f} after {stage.steps} steps")

# %% [markdown]
# ## The trained model
#
# Only what was trained was saved: adapters, norms and gates.

# %%
trained: Any = memcore.load_trained(MODEL, folder / "trained")
size = (folder / "trained" / "trained.safetensors").stat().st_size
print(f"{size / 2**20:.1f} MiB of trained weights; memory layer {trained.memory.config.memory_layer}")
