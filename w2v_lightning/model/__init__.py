"""The network: transformers' Wav2Vec2ForCTC built or loaded, run, scored with CTC, and saved again."""
