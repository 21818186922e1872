"""Converts text, images and videos to the arrays of the model, as Hugging Face's Qwen3-VL processor does.

In the order of the data flow: `tokenizer`, `image` and `video` (resize, patchify), `video_files` (opening videos),
`chat` (template, loss mask, position ids, collation). `tiny_tokenizer` trains the small vocabulary of the `tiny`
preset. `encoder_tokenizer` and `sentencepiece` tokenize for the encoder of questions.
"""
