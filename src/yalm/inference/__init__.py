"""From a model folder to text: loading, generation in batches and streams, scores.

`language_model` is the door; behind it `engine` runs prefill and decode over a `cache`, `sampling` chooses the tokens,
`stopping` turns them into text, `linear` makes a CPU read the weights at the memory's speed, `parallel` lays the model
over several processes. `files` completes JSON lines and survives being killed.
"""
