"""The demo: the same noise drawn by several methods at several numbers of calls, as a live page and as a file.

`request` says what is drawn, `cells` draws it, `commands` tells how to draw it again, `page` shows it. `app` alone
knows Gradio.
"""
