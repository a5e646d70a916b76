"""From text to batches: the tokenizer, token shards on disk, the mixture of parts and resumable batches.

`documents` reads text files; `tokenizer` turns text into ids and back; `build` writes the ids of many documents as
`shards`, which a `folder` shows as one long stream; `mixture` decides which part a training sample comes from, and
`batches` cuts the samples out. Import from the modules: only `batches` needs torch.
"""
