"""The network: building, loading, running and saving transformers' wav2vec2 models, and their losses."""
