"""A page on this machine to click on: pictures and clips, and models that answer side by side.

Starlette and uvicorn with a page of plain HTML and JavaScript are two small packages that many have already. Gradio
brings some forty, fetches fonts, and has neither clicks on several canvases at once nor boxes or a timeline.
"""
