"""A wav2vec2 that trains in seconds: two layers, three convolutions, 20 ms frames; and what trains it."""

from corpus import random_texts, write_split
from lightning.pytorch import Trainer

from w2v_lightning import LibriSpeechDataModule

TINY_CONFIG = {
    "conv_dim": [32, 32, 32],
    "conv_kernel": [20, 8, 4],
    "conv_stride": [10, 8, 4],
    "feat_extract_norm": "layer",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def write_corpus(root):
    """The splits that `data` reads; some 50 s of training speech."""
    for number, (split, size) in enumerate({"train": 24, "dev": 6, "dev2": 5}.items(), start=1):
        write_split(root, split, random_texts(size, seed=number), speaker=str(number))
    return root


def data(corpus, **options):
    settings = {"train_splits": ["train"], "val_splits": ["dev"], "test_splits": ["dev2"], "num_workers": 0}
    return LibriSpeechDataModule(str(corpus), **{**settings, "batch_seconds": 20, "device_seconds": 20, **options})


def trainer(tmp_path, **options):
    settings = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(default_root_dir=tmp_path, **{**settings, "num_sanity_val_steps": 0, **options})
