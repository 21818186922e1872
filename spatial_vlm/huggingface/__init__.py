"""Hugging Face checkpoint folders: what they hold, streamed reading and writing, PEFT adapters, encoders."""
