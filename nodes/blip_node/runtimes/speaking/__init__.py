"""How texts are spoken: sentences, the families of voices, and the engine around them.

A family is one module: :mod:`.vits` and :mod:`.speecht5` of transformers, :mod:`.piper` of Piper.
They are imported when a model of theirs is loaded, and only then.
"""
