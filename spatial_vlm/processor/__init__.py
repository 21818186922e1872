"""From text and pictures to the arrays that the model reads, as Hugging Face's Qwen3-VL processor makes them.

In the order in which data passes: `tokenizer`, `image` and `video` (resize, patchify), `video_files` (what videos are
read from), `chat` (template, loss mask, position ids, collation). `tiny_tokenizer` trains the small vocabulary of the
`tiny` preset.
"""
