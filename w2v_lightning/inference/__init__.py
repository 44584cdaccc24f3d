"""Transcription of audio files with a fine-tuned model."""
