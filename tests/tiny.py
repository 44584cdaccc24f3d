"""A wav2vec2 that trains in seconds: two layers, three convolutions, 20 ms frames."""

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
