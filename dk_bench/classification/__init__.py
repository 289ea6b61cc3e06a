"""The task of classifying images by timm models. Begin with module.py."""
