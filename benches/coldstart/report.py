def show(*_, **__): pass
