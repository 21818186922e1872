"""From text and pictures to the arrays that the model reads, as Hugging Face's Qwen3-VL processor makes them.

In the order in which data passes: `tokenizer`, `image` (resize, patchify), `chat` (template, loss mask,
position ids, collation). `tiny_tokenizer` trains the small vocabulary of the `tiny` preset.
"""
