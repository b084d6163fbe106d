"""Decoding text token by token: what the text runtime is made of.

``sequence`` is the state of one stream, ``sampler`` chooses its tokens, ``vocabulary`` and
``detokenizer`` turn them into text, ``stops`` watches that text, ``stepper`` is the only one that
calls the model, and ``loop`` is the thread around it all.
"""
