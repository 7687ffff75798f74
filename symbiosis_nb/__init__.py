"Five papers on face and person attributes, reproduced side by side"
import os

__version__ = "0.1.0"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow a busy machine twentyfold; read once, by torch
