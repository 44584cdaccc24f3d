"""Transcripts: vocabulary, normalisation, label ids, tokenizer folders."""
