"Five papers on face and person attributes, reproduced side by side"
import os
import warnings

__version__ = "0.1.0"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow a busy machine twentyfold; read once, by torch
# of fastai 2.8.7 with newer torch and pandas, and of tqdm without notebook widgets: warnings at import that nobody can act on
warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
warnings.filterwarnings("ignore", message=".*mode.chained_assignment.*")
warnings.filterwarnings("ignore", message=".*IProgress not found.*")
