"""Transcripts: vocabulary, normalization, label ids, tokenizer folders."""
