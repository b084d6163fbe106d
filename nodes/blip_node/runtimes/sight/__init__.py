"""Models that look at pictures.

:mod:`.loading` loads them; :mod:`.engine` answers with what is seen, through one of the tasks in
:mod:`.classify`, :mod:`.detect`, :mod:`.depth` and :mod:`.segment`; :mod:`.narrator` answers with
text, of the prompts in :mod:`.prompts`, token by token through :mod:`.generation`.
"""
