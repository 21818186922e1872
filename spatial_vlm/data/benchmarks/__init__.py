"""Benchmarks by their published file formats: TSV of VLMEvalKit, Parquet of the Hugging Face hub, JSON of What'sUp."""
