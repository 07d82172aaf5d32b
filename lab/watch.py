"""stub"""
def write_curves(*a): pass
def write_sheet(*a, **k): pass
