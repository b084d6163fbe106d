"""Decoding text token by token: what the text runtime is made of.

``sequence`` is the state of one stream, ``sampler`` chooses tokens, ``vocabulary`` and
``detokenizer`` turn them into text, ``stops`` watches that text. ``lark`` writes grammars, which
``constraint`` holds an answer to, and ``tool_stream`` finds calls of functions. ``stepper`` and
``batched`` are the only ones that call the model: the one for each sequence, the other for all at
once, with ``ragged`` for their attention, ``pool`` for their keys and values, ``prefixes`` for what
prompts have in common, ``capacity`` and ``share`` to deal out memory and time. ``loop`` is the
thread around it all.
"""
