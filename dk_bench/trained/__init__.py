"""A trained model outside of training: loaded, used on images, handed on to other programs. Begin with load.py."""
