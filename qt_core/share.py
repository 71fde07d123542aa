from pathlib import Path
def share_path(p): return Path(__file__).resolve().parent.parent / p
