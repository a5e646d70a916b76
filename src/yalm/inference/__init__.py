"""From a model folder to text: loading, generation in batches and streams, scores.

`loading` is the door, `language_model` the room behind it: `engine` runs prefill and decode over a `cache`, `sampling`
chooses the tokens, `stopping` turns them into text. `placement` decides where layers lie, `streamed` reads those that
have no place as they run, `parallel` divides the model between processes, `linear` makes a CPU read the weights at the
memory's speed, `forecast` says how long it all takes. `files` completes JSON lines and survives being killed.
"""
