"""Transcription with a trained model: audio files to text."""
