"""Classification of images by timm models."""
