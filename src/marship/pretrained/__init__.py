"""Models of transformers in a local folder: nothing is downloaded, and none of its code is run."""
